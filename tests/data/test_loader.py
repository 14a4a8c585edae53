import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import photo
from fastmim.data.loading.dataset import (
    Batch,
    BatchRequest,
    Canvas,
    CropDataset,
    UnreadableRecord,
    copied,
    load_batches,
    to_images,
)
from fastmim.data.loading.train_loader import split_images
from fastmim.data.loading.unreadable import UnreadableLog
from fastmim.data.settings import CropConfig
from fastmim.data.sources.base import ArrayImages
from fastmim.data.sources.open import open_images
from fastmim.data.transforms.crops import draw_crops
from fastmim.errors import RunError, UsageError
from fastmim.train.sampler import InfiniteSampler
from fastmim.train.stages import Stage


def crops_of(folder, size=(16, 16)):
    source = open_images(str(folder))
    return CropDataset(source, np.arange(len(source)), CropConfig(), size, 3)


def test_boxes_lie_inside_and_take_the_share_asked_for():
    draws = draw_crops(CropConfig(scale=(0.2, 1.0)), 400, (1, 2))
    for height, width in [(100, 150), (33, 500), (7, 5), (1, 1)]:
        for row in range(400):
            box = draws.box(row, height, width)
            assert 0 <= box.top <= box.top + box.height <= height
            assert 0 <= box.left <= box.left + box.width <= width
            assert min(box.height, box.width) >= 1
    shares = [b.height * b.width / 15000 for b in (draws.box(row, 100, 150) for row in range(400))]
    assert min(shares) > 0.17
    assert 0.4 < np.mean(shares) < 0.6  # shapes that do not fit are drawn again, which favours small ones


def test_draws_are_a_function_of_the_seeds():
    first, again, other = (draw_crops(CropConfig(), 8, seeds) for seeds in [(1, 2), (1, 2), (1, 3)])
    assert np.array_equal(first.areas, again.areas)
    assert np.array_equal(first.flips, again.flips)
    assert not np.array_equal(first.areas, other.areas)
    assert not draw_crops(CropConfig(flip=False), 64, (1,)).flips.any()


def test_batches_are_the_same_with_and_without_workers(photos):
    draws = [BatchRequest(np.arange(i, i + 6), (9, i)) for i in range(5)]
    alone = list(load_batches(crops_of(photos), draws, 0, False))
    helped = list(load_batches(crops_of(photos), draws, 2, False))
    for a, b in zip(alone, helped, strict=True):
        assert torch.equal(a.pixels_BHWC, b.pixels_BHWC)
        assert torch.equal(a.flips_B, b.flips_B)
        assert a.pixels_BHWC.dtype == torch.uint8


def test_flip_and_normalisation():
    pixels = torch.randint(0, 256, (2, 4, 6, 3), dtype=torch.uint8)
    batch = Batch(pixels, torch.tensor([False, True]), np.arange(2), np.array([]), [])
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.4, 0.5, 0.6])
    images = to_images(batch, mean, std)
    assert images.shape == (2, 3, 4, 6)
    expected = (pixels.permute(0, 3, 1, 2) / 255 - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    assert torch.allclose(images[0], expected[0])
    assert torch.allclose(images[1], expected[1].flip(2))


@pytest.mark.parametrize("chans", [1, 3, 13])
def test_a_batch_of_mixed_types_is_one_of_float_and_the_same_to_a_model(chans):
    generator = np.random.default_rng(0)
    eight = generator.integers(0, 256, (2, 8, 8, chans), np.uint8)
    alone = CropDataset(ArrayImages(eight, "eight"), np.arange(2), CropConfig(), (8, 8), chans)
    mixed = CropDataset(Mixed(eight), np.arange(4), CropConfig(), (8, 8), chans)
    draw = BatchRequest(np.arange(2), (5,))
    assert alone[draw].pixels_BHWC.dtype == torch.uint8
    assert mixed[draw].pixels_BHWC.dtype == torch.uint8
    both = mixed[BatchRequest(np.arange(4), (5,))]
    assert both.pixels_BHWC.dtype == torch.float32
    assert both.pixels_BHWC.shape == (4, 8, 8, chans)
    assert both.pixels_BHWC.min() > -0.5  # about 0..1: a little overshoot is bicubic's
    assert both.pixels_BHWC.max() < 1.5
    mean, std = torch.full((chans,), 0.4), torch.full((chans,), 0.2)
    still = CropDataset(
        Mixed(eight), np.arange(4), CropConfig(scale=(1, 1), aspect=(1, 1), flip=False), (8, 8), chans
    )
    images = to_images(still[BatchRequest(np.arange(4), (5,))], mean, std)
    assert torch.allclose(images[:2], images[2:], atol=1e-5)
    assert torch.equal(images[:2], to_images(still[BatchRequest(np.arange(2), (5,))], mean, std))


class Mixed:
    """Images of 8 bits, then the same with 16."""

    def __init__(self, eight: np.ndarray) -> None:
        self.images = [*eight, *(eight.astype(np.uint16) * 257)]

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return str(index)

    def read(self, index: int) -> np.ndarray:
        return self.images[index]


@pytest.fixture
def spoiled(tmp_path):
    """Nineteen images and a text that calls itself one."""
    folder = tmp_path / "spoiled"
    folder.mkdir()
    for number in range(19):
        Image.fromarray(photo(number)).save(folder / f"{number:02d}.png")
    (folder / "07b.png").write_text("not an image")
    return folder


def test_an_unreadable_image_is_replaced_and_listed_once(spoiled, tmp_path):
    crops = crops_of(spoiled)
    batch = crops[BatchRequest(np.arange(20), (0,))]
    assert [(item.name, item.reason) for item in batch.unreadable] == [
        ("07b.png", "not an image in a format that Pillow reads")
    ]
    assert len(batch.pixels_BHWC) == 20
    again = crops[BatchRequest(np.arange(20), (0,))]
    assert torch.equal(batch.pixels_BHWC, again.pixels_BHWC)
    unreadable_log = UnreadableLog(tmp_path / "skipped.jsonl", 20, 0.05)
    unreadable_log.note(batch)
    unreadable_log.note(again)
    (line,) = (tmp_path / "skipped.jsonl").read_text().splitlines()
    assert json.loads(line)["image"] == "07b.png"
    assert len(UnreadableLog(tmp_path / "skipped.jsonl", 20, 0.05).skipped) == 1


def test_more_than_the_limit_stops_the_run(spoiled, tmp_path):
    unreadable_log = UnreadableLog(tmp_path / "skipped.jsonl", 20, 0.04)
    with pytest.raises(RunError, match=r"1 of the 20 images .* max_unreadable = 0\.04"):
        unreadable_log.note(crops_of(spoiled)[BatchRequest(np.arange(20), (0,))])


def test_a_folder_of_nothing_but_texts_ends_soon(tmp_path):
    for number in range(200):
        (tmp_path / f"{number}.jpg").write_text("no")
    with pytest.raises(RunError, match="in a row cannot be read"):
        crops_of(tmp_path)[BatchRequest(np.arange(4), (0,))]


def test_the_split_is_disjoint_complete_and_fixed_by_the_seed():
    split = split_images(100, 64, seed=3)
    assert len(split.held_out) == 10
    assert sorted([*split.training, *split.held_out]) == list(range(100))
    assert np.array_equal(split.held_out, split_images(100, 64, seed=3).held_out)
    assert not np.array_equal(split.held_out, split_images(100, 64, seed=4).held_out)
    assert len(split_images(10_000, 64, 0).held_out) == 64
    assert split_images(1, 64, 0).shared


@pytest.mark.parametrize(
    "settings",
    [
        {"scale": (0, 1)},
        {"scale": (0.5, 0.2)},
        {"aspect": (2, 1)},
        {"mean": (0, 0, 0), "std": (0, 1, 1)},
        {"mean": (0, 0), "std": (1, 1, 1)},
        {"mean": (0, 0), "std": (1, float("nan"))},
        {"mean": (), "std": ()},
        {"mean": (0, 0, 0)},
        {"std": (1, 1, 1)},
    ],
)
def test_crop_settings_that_cannot_work(settings):
    with pytest.raises(UsageError, match="crop"):
        CropConfig(**settings)


def test_the_same_workers_go_on_over_the_end_of_an_epoch(photos):
    """The stream has no end, so nothing is started anew or waited for between epochs."""
    pool = np.arange(24)
    stream = InfiniteSampler(pool, seed=1)
    stage = Stage(0, (16, 16), 10, None, 0, 12, 0)
    draws = (BatchRequest(indices, (step,)) for step, indices in stream.batches(stage, 0))
    processes = []
    for step, batch in enumerate(load_batches(Marked(crops_of(photos)), draws, 2, False)):
        assert len(batch.indices) == 10  # also where an epoch of 24 ends within
        processes.append((step % 2, batch.unreadable[0].index))
    assert len(set(processes)) == 2  # every other batch is one worker's, from the first to the last
    assert len(processes) == 12


class Marked:
    """Crops whose batches say which process made them."""

    def __init__(self, crops: CropDataset) -> None:
        self.crops = crops

    def __getitem__(self, draw: BatchRequest) -> Batch:
        batch = self.crops[draw]
        return replace(batch, unreadable=[UnreadableRecord(os.getpid(), "", "")])


@pytest.mark.gpu
def test_copies_beside_the_computation_are_the_same(photos):
    device = torch.device("cuda")
    draws = [BatchRequest(np.arange(i, i + 6), (9, i)) for i in range(5)]
    mean, std = torch.full((3,), 0.4), torch.full((3,), 0.2)
    for batch in load_batches(crops_of(photos), draws, 1, True):
        ahead = to_images(copied(batch, device), mean.to(device), std.to(device))
        assert torch.allclose(ahead.cpu(), to_images(batch, mean, std), atol=1e-6)


@pytest.mark.parametrize("kind", ["float", "own place", "elsewhere"])
def test_a_canvas_takes_crops_from_anywhere(kind):
    canvas = Canvas(2, (4, 4), 3)
    first = np.full((4, 4, 3), 51, np.uint8)
    canvas.put(0, first)
    if kind == "own place":
        place = canvas.place(1)
        place[...] = 102
        canvas.put(1, place)
        assert (canvas.pixels[1] == 102).all()
    elif kind == "elsewhere":
        canvas.put(1, first)
        assert (canvas.pixels == 51).all()
    else:
        canvas.put(1, np.full((4, 4, 3), 0.5, np.float32))
        assert canvas.place(1) is None
        assert np.allclose(canvas.pixels[0], 0.2)
        assert np.allclose(canvas.pixels[1], 0.5)
