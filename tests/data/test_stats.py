import numpy as np
import pytest
import torch
from PIL import Image

from conftest import photo
from fastmim.cli.entry import main
from fastmim.data.loading.channel_stats import fill_note, measure_stats
from fastmim.data.sources.base import ArrayImages
from fastmim.data.sources.open import open_images
from fastmim.errors import UsageError


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("chans", [1, 3, 13])
def test_the_same_as_over_all_pixels_at_once(chans, kind):
    generator = np.random.default_rng(0)
    top = 1 if kind is np.float32 else np.iinfo(kind).max
    images = (generator.random((20, 12, 16, chans)) ** np.arange(1, chans + 1) * top).astype(kind)
    stats = measure_stats(ArrayImages(images, "image"), chans, (12, 16), None, 0)
    values = (images / top).reshape(-1, chans)
    assert np.allclose(stats.mean, values.mean(0), atol=1e-6)
    assert np.allclose(stats.std, values.std(0), atol=1e-6)
    assert (stats.images, stats.unreadable) == (20, 0)


def test_a_large_mean_costs_no_precision():
    images = 1000 + np.random.default_rng(0).random((30, 8, 8, 2)).astype(np.float32)
    stats = measure_stats(ArrayImages(images, "image"), 2, (8, 8), None, 0)
    assert np.allclose(stats.std, images.astype(np.float64).reshape(-1, 2).std(0), rtol=1e-6)


@pytest.mark.parametrize(("kind", "value"), [(np.uint8, 77), (np.uint8, 0), (np.float32, 0.3)])
def test_a_constant_channel_has_a_deviation_of_one(kind, value):
    images = np.random.default_rng(0).random((5, 9, 11, 4)).astype(kind)
    images[..., 2] = value
    images[..., 0] = np.arange(5)[:, None, None]  # differs between images only
    stats = measure_stats(ArrayImages(images, "image"), 4, (7, 20), None, 0)
    assert stats.std[2] == 1
    assert stats.mean[2] == pytest.approx(value / 255 if kind is np.uint8 else value)
    assert stats.std[0] == pytest.approx(np.sqrt(2) / (255 if kind is np.uint8 else 1))


def test_the_seed_draws_the_images_and_workers_change_nothing(photos):
    source = open_images(str(photos))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first, again, other = (measure_stats(source, 3, (32, 32), 6, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert first.images == 6
    assert measure_stats(source, 3, (32, 32), 6, 1, workers=2) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert measure_stats(source, 3, (32, 32), 100, 1).images == 24


def test_unreadable_images_are_counted_and_left_out(tmp_path):
    for number in range(4):
        Image.fromarray(photo(number)).save(tmp_path / f"{number}.png")
    before = measure_stats(open_images(str(tmp_path)), 3, (16, 16), None, 0)
    (tmp_path / "2b.png").write_text("not an image")
    np.save(tmp_path / "nan.npy", np.full((8, 8, 3), np.nan))
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    stats = measure_stats(open_images(str(tmp_path)), 3, (16, 16), None, 0)
    assert (stats.images, stats.unreadable) == (4, 3)
    assert (stats.mean, stats.std) == (before.mean, before.std)


def test_nothing_readable_names_the_first_reason(photos):
    with pytest.raises(
        UsageError, match=r"none of 5 images .* 13 channels; .*jpg: 13 channels are needed, .* has 3"
    ):
        measure_stats(open_images(str(photos)), 13, (16, 16), 5, 0)


@pytest.mark.parametrize(
    ("kind", "value"),
    [(np.float32, -9999), (np.float32, 1e20), (np.float32, -32768), (np.int16, -32768), (np.uint16, 65535)],
)
def test_a_value_that_marks_missing_pixels_is_said(tmp_path, capsys, kind, value):
    generator = np.random.default_rng(0)
    for number in range(8):
        image = (generator.random((16, 16, 4)) * 1000).astype(kind)
        np.save(tmp_path / f"{number}.npy", image)
    source = open_images(str(tmp_path))
    assert fill_note(source, 4, 0) is None
    image[:3] = value
    np.save(tmp_path / "7.npy", image)
    said = fill_note(source, 4, 0)
    assert "in 1 of 8 images, as if it marked missing pixels" in said
    assert main(["stats", "--data", str(tmp_path), "--in-chans", "4"]) == 0
    written = capsys.readouterr()
    assert said in written.err
    assert "nan" not in written.out.lower()


def test_bright_spots_and_masks_mark_no_missing_pixels(photos):
    generator = np.random.default_rng(0)
    sparse = (generator.random((4, 16, 16, 4)) ** 8).astype(np.float32)
    masks = np.repeat(generator.integers(0, 2, (4, 16, 16, 1)).astype(np.float32), 4, 3)
    framed = generator.integers(10, 60, (4, 16, 16, 4), dtype=np.uint8)
    framed[:, :3] = 255
    for images in (sparse, masks, framed):
        assert fill_note(ArrayImages(images, "image"), 4, 0) is None
    assert fill_note(open_images(str(photos)), 3, 0) is None
