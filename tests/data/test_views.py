"""What is measured: every image once, its centre, in order, and unreadable ones told."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

import fastmim
from conftest import photo
from fastmim.data.loading.eval_loader import CenterBox, EvalLoader
from fastmim.data.sources.open import open_images
from fastmim.errors import UsageError


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(2, 400), st.integers(2, 400))
def test_the_box_lies_within_the_image_and_in_its_middle(height, width, h, w):
    box = CenterBox((h, w))(height, width)
    assert box.top >= 0
    assert box.top + box.height <= height
    assert box.left >= 0
    assert box.left + box.width <= width
    assert abs(2 * box.top + box.height - height) <= 1
    assert abs(2 * box.left + box.width - width) <= 1


def test_of_large_images_a_border_is_cut_and_of_small_ones_none():
    assert CenterBox((224, 224))(512, 512)[2:] == (448, 448)
    assert CenterBox((384, 384))(768, 768)[2:] == (768, 768)
    assert CenterBox((32, 32))(32, 32)[2:] == (32, 32)
    assert CenterBox((224, 224))(64, 128)[2:] == (64, 64)
    assert CenterBox((64, 128))(200, 400)[2:] == (175, 350)


@pytest.mark.parametrize("workers", [0, 2])
def test_each_image_is_seen_once_in_order_and_broken_ones_are_told(photos, tmp_path, workers):
    names = sorted(photos.rglob("*.jpg"))
    for number, path in enumerate(names[:7]):
        (tmp_path / f"{number}.jpg").write_bytes(path.read_bytes() if number != 3 else b"broken")
    source = open_images(str(tmp_path))
    views = EvalLoader(source, np.arange(7), (16, 16), 3, 2, workers, torch.zeros(3), torch.ones(3))
    shown, broken = [], []
    for images, indices, unreadable in views:
        assert images.shape == (len(indices), 3, 16, 16)
        shown += indices.tolist()
        broken += unreadable
    assert shown == [0, 1, 2, 4, 5, 6]
    assert [item.name for item in broken] == ["3.jpg"]


@pytest.mark.parametrize("size", [128, (224, 160), 384])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_an_image_for_serving_is_what_pillow_makes_of_its_middle(tmp_path, size, suffix, orientation):
    file = tmp_path / f"one.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(photo(1, 500, 700)).save(file, exif=exif)
    shown = fastmim.load_image(file, size)
    height, width = (size, size) if isinstance(size, int) else size
    whole = ImageOps.exif_transpose(Image.open(file)).convert("RGB")
    top, left, h, w = CenterBox((height, width))(whole.height, whole.width)
    part = whole.crop((left, top, left + w, top + h))
    assert shown.dtype == np.uint8
    truth = np.asarray(part.resize((width, height), Image.Resampling.BICUBIC))
    assert np.array_equal(shown, truth)


def test_an_image_for_serving_is_what_evaluation_sees(photos):
    source = open_images(str(photos))
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.4])
    views = EvalLoader(source, np.arange(3), (48, 48), 3, 3, 0, mean, std)
    ((images, _, _),) = list(views)
    for index, image in enumerate(images):
        served = torch.from_numpy(fastmim.load_image(photos / source.name(index), 48))
        assert torch.allclose(
            (served.permute(2, 0, 1) / 255 - mean[:, None, None]) / std[:, None, None], image
        )


def test_other_channels_and_depths_can_be_served(tmp_path):
    Image.fromarray(photo(0, 30, 40)).convert("L").save(tmp_path / "grey.png")
    assert fastmim.load_image(tmp_path / "grey.png", 16, in_chans=1).shape == (16, 16, 1)
    bands = np.random.default_rng(0).integers(0, 65536, (5, 20, 20)).astype(np.uint16)
    np.save(tmp_path / "bands.npy", bands)
    shown = fastmim.load_image(tmp_path / "bands.npy", 20, in_chans=5)
    assert shown.dtype == np.float32
    assert np.allclose(shown, bands.transpose(1, 2, 0) / 65535)


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("missing.png", {}, "missing.png"),
        ("words.png", {}, "words.png: not an image"),
        ("large.png", {"max_pixels": 599}, "large.png: .*30x20 pixels, more than max-pixels = 599"),
        ("large.png", {"image_size": 0}, "image_size = 0"),
        ("large.png", {"in_chans": 0}, "in_chans = 0"),
        ("large.png", {"in_chans": 5}, "large.png: "),
    ],
)
def test_what_cannot_be_served_is_told_in_one_line(tmp_path, name, settings, words):
    (tmp_path / "words.png").write_text("words")
    Image.fromarray(photo(0, 20, 30)).save(tmp_path / "large.png")
    with pytest.raises(UsageError, match=words) as told:
        fastmim.load_image(tmp_path / name, **{"image_size": 16, **settings})
    assert "\n" not in str(told.value)
