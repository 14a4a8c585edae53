"""Masks: values, palettes and colours; folders and splits; crops that fit their images."""

import io

import numpy as np
import pytest
from PIL import Image

from conftest import encoded, photo
from fastmim.data.annotations.mask_pairs import MaskFormat, open_masks
from fastmim.data.annotations.masks import IGNORED, MaskCode, read_mask, write_mask
from fastmim.data.decode.pixels import UnreadableImage
from fastmim.data.loading.mask_samples import MaskSamples, WholeMasks
from fastmim.data.loading.whole_images import Geometry
from fastmim.data.settings import JitterConfig
from fastmim.errors import UsageError

IDS = np.array([[0, 1, 2], [255, 1, 0]], np.uint8)


def png(array: np.ndarray, palette: list[int] | None = None) -> bytes:
    return encoded(_with_palette(array, palette) if palette else Image.fromarray(array), "PNG")


def _with_palette(array: np.ndarray, palette: list[int]) -> Image.Image:
    image = Image.new("P", (array.shape[1], array.shape[0]))
    image.putdata(array.ravel().tolist())
    image.putpalette(palette)
    return image


def test_values_are_classes_and_255_is_ignored():
    assert read_mask(png(IDS), MaskCode(3)).tolist() == [[0, 1, 2], [IGNORED, 1, 0]]


def test_zero_is_unlabelled_and_the_others_move_down_by_one():
    code = MaskCode(2, zero_is_unlabelled=True)
    assert read_mask(png(IDS), code).tolist() == [[IGNORED, 0, 1], [IGNORED, 0, IGNORED]]


def test_a_palette_image_is_read_as_its_indices():
    colours = [200, 10, 10, 10, 200, 10, 10, 10, 200]
    mask = png(np.array([[0, 1, 2]], np.uint8), palette=colours)
    assert Image.open(io.BytesIO(mask)).mode == "P"
    assert read_mask(mask, MaskCode(3)).tolist() == [[0, 1, 2]]


def test_sixteen_bits():
    mask = encoded(Image.fromarray(np.array([[0, 300]], np.uint16)), "PNG")
    assert read_mask(mask, MaskCode(2, ignore_index=300)).tolist() == [[0, IGNORED]]


def test_colours_become_classes_and_others_are_ignored():
    pixels = np.array([[[128, 64, 128], [0, 0, 142], [1, 2, 3]]], np.uint8)
    code = MaskCode(2, colours=((0, 0, 142), (128, 64, 128)))
    assert read_mask(png(pixels), code).tolist() == [[1, 0, IGNORED]]


@pytest.mark.parametrize(
    ("data", "code", "reason"),
    [
        (png(IDS), MaskCode(2), r"its mask has the value 2; the 2 classes have the values 0 to 1"),
        (png(IDS), MaskCode(1, zero_is_unlabelled=True), "has the value 2; the 1 classes .* 1 to 1"),
        (png(photo(0)), MaskCode(3), "its mask is a colour image: give .* --palette"),
        (png(IDS), MaskCode(2, colours=((0, 0, 0), (1, 1, 1))), "holds ids, not the colours"),
        (b"no image", MaskCode(3), "its mask cannot be read"),
        (encoded(Image.fromarray(IDS), "JPEG"), MaskCode(3), "its mask cannot be read"),  # changes ids
        (encoded(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"), MaskCode(3), "Pillow's mode F"),
    ],
)
def test_other_files_are_unreadable_for_a_reason(data, code, reason):
    with pytest.raises(UnreadableImage, match=reason):
        read_mask(data, code)


@pytest.mark.parametrize("unlabelled", [False, True])
def test_what_is_written_is_read(unlabelled):
    mask = np.array([[0, 1, IGNORED]], np.uint8)
    code = MaskCode(2, unlabelled)
    assert read_mask(write_mask(mask, unlabelled), code).tolist() == mask.tolist()


def striped(number: int, height: int = 40, width: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """An image whose grey value tells the class: stripes of three classes."""
    mask = np.repeat(np.arange(3, dtype=np.uint8), width // 3)[None].repeat(height, 0)
    mask = np.roll(mask, number, axis=1)
    return (mask * 100)[..., None].repeat(3, 2), mask


def write_pairs(folder, images: str, masks: str, numbers, suffix: str = "", add: int = 0) -> None:
    for part in (images, masks):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for number in numbers:
        image, mask = striped(number)
        Image.fromarray(image).save(folder / images / f"{number}.png")
        Image.fromarray(mask + add).save(folder / masks / f"{number}{suffix}.png")


@pytest.mark.parametrize(
    ("images", "masks", "suffix", "layout"),
    [
        ("images/{}", "annotations/{}", "", "ADE20K's layout"),
        ("img/{}", "labels/{}", "_mask", "img/ and labels/"),
        ("{}/images", "{}/masks", "_seg", "images/ and masks/ in each split"),
    ],
)
def test_layouts_are_recognised(tmp_path, images, masks, suffix, layout):
    is_ade = layout.startswith("ADE")
    splits = ("training", "validation") if is_ade else ("train", "val")
    write_pairs(tmp_path, images.format(splits[0]), masks.format(splits[0]), range(5), suffix, add=is_ade)
    write_pairs(tmp_path, images.format(splits[1]), masks.format(splits[1]), range(5, 7), suffix, add=is_ade)
    training, validation = open_masks(str(tmp_path), MaskFormat(), 0.2, 0)
    assert (len(training), len(validation)) == (5, 2)
    assert training.notes[0].startswith(layout)
    assert training.code.zero_is_unlabelled == is_ade
    assert training.classes == (("1", "2", "3") if is_ade else ("0", "1", "2"))
    for data in (training, validation):
        for index in data.indices:
            stem = data.source.name(index).removesuffix(".png")
            assert data.masks.name(index) == f"{stem}{suffix}.png"
            assert np.unique(read_mask(data.masks.read(index), data.code)).tolist() == [0, 1, 2]


def test_without_a_split_a_share_is_held_out_and_nothing_is_in_both(tmp_path):
    write_pairs(tmp_path, "images", "masks", range(10))
    training, validation = open_masks(str(tmp_path), MaskFormat(), 0.3, 0)
    assert (len(training), len(validation)) == (7, 3)
    assert set(training.indices) | set(validation.indices) == set(range(10))
    again, _ = open_masks(str(tmp_path), MaskFormat(), 0.3, 1)
    assert set(again.indices) != set(training.indices)


def test_files_without_a_partner_are_left_out_and_counted(tmp_path):
    write_pairs(tmp_path, "images", "masks", range(4))
    (tmp_path / "masks" / "0.png").unlink()
    (tmp_path / "images" / "1.png").unlink()
    training, validation = open_masks(str(tmp_path), MaskFormat(), 0.5, 0)
    assert len(training) + len(validation) == 2
    assert any(note.startswith("1 image without a mask left out, such as") for note in training.notes)
    assert any(note.startswith("1 mask without an image left out, such as") for note in training.notes)


def test_names_of_classes(tmp_path):
    write_pairs(tmp_path, "images", "masks", range(4))
    (tmp_path / "classes.txt").write_text("road\ncar\n\nsky\n")
    training, _ = open_masks(str(tmp_path), MaskFormat(), 0.5, 0)
    assert training.classes == ("road", "car", "sky")
    (tmp_path / "own.txt").write_text("a\nb\nc\n")
    training, _ = open_masks(str(tmp_path), MaskFormat(classes=str(tmp_path / "own.txt")), 0.5, 0)
    assert training.classes == ("a", "b", "c")
    (tmp_path / "palette.txt").write_text("128 64 128 road\n0,0,142 car\n")
    training, _ = open_masks(str(tmp_path), MaskFormat(palette=str(tmp_path / "palette.txt")), 0.5, 0)
    assert training.classes == ("road", "car")
    assert training.code.colours == ((128, 64, 128), (0, 0, 142))


@pytest.mark.parametrize(
    ("change", "form", "message"),
    [
        (lambda d: None, MaskFormat(), "has no folders of images and masks; give a folder with images/"),
        (
            lambda d: write_pairs(d, "images", "pictures", range(2)),
            MaskFormat(),
            "has no folders of images and",
        ),
        (lambda d: write_pairs(d, "images", "masks", range(1)), MaskFormat(), "one image with a mask; two"),
        (
            lambda d: write_pairs(d, "images", "masks", range(2)),
            MaskFormat("/no.txt"),
            "classes: /no.txt cannot",
        ),
        (
            lambda d: (
                write_pairs(d, "images", "masks", range(2)),
                write_pairs(d, "images", "labels", range(2)),
            ),
            MaskFormat(),
            "has labels, masks, and it is unclear which to use",
        ),
    ],
)
def test_errors_name_the_folder(tmp_path, change, form, message):
    change(tmp_path)
    with pytest.raises(UsageError, match=message) as error:
        open_masks(str(tmp_path), form, 0.5, 0)
    assert "\n" not in str(error.value)


@pytest.fixture
def pairs(tmp_path):
    write_pairs(tmp_path, "images", "masks", range(6))
    return open_masks(str(tmp_path), MaskFormat(), 0.5, 0)[0]


@pytest.mark.parametrize("scale", [(0.4, 0.6), (1.0, 1.0), (1.5, 2.0)])
def test_crops_of_image_and_mask_show_the_same(pairs, scale):
    """The grey value of a pixel tells its class, away from the edges of the stripes."""
    config = JitterConfig(scale=scale, distort=False, mean=(0.5,) * 3, std=(0.5,) * 3)
    samples = MaskSamples(pairs, config, Geometry((32, 48), 32), 3)
    for draw in range(12):
        sample = samples.load(int(pairs.indices[0]), (3, draw))
        height, width = sample.pixels.shape[:2]
        mask = sample.arrays["mask"][0]
        assert mask.shape == (32, 48)
        assert (mask[height:] == IGNORED).all()
        assert (mask[:, width:] == IGNORED).all()
        shown = mask[:height, :width].astype(int)
        wrong = abs(sample.pixels[..., 0].astype(int) - shown * 100) > 50
        assert wrong.mean() < 0.06  # half a pixel at each edge
        assert set(np.unique(shown)) <= {0, 1, 2}


def test_a_draw_depends_on_the_seeds_only(pairs):
    config = JitterConfig(mean=(0.5,) * 3, std=(0.5,) * 3)
    samples = MaskSamples(pairs, config, Geometry((32, 48), 32), 3)
    one, same, other = (samples.load(int(pairs.indices[0]), seeds) for seeds in ((1, 2), (1, 2), (1, 3)))
    assert np.array_equal(one.pixels, same.pixels)
    assert np.array_equal(one.arrays["mask"], same.arrays["mask"])
    assert one.pixels.shape != other.pixels.shape or not np.array_equal(one.pixels, other.pixels)


def test_no_class_covers_more_of_a_crop_than_it_may(pairs):
    config = JitterConfig(scale=(2.0, 2.0), distort=False, mean=(0.5,) * 3, std=(0.5,) * 3)
    shares = []
    for most in (1.0, 0.6):
        samples = MaskSamples(pairs, config, Geometry((24, 24), 32), 3, most)
        masks = [samples.load(int(pairs.indices[0]), (draw,)).arrays["mask"] for draw in range(30)]
        shares.append(np.mean([np.bincount(mask.ravel())[:3].max() / mask.size > 0.6 for mask in masks]))
    assert shares[1] < shares[0]


def test_whole_images_keep_their_mask_at_the_original_size(pairs):
    wholes = WholeMasks(pairs, Geometry((32, 48), 20), 3, scales=(1.0, 0.5))
    pixels, original, arrays = wholes.load_whole(int(pairs.indices[0]))
    assert original == (40, 60)
    assert [image.shape for image in pixels] == [(20, 30, 3), (10, 15, 3)]
    assert arrays["mask"].shape == (40, 60)


def test_a_mask_of_another_size_costs_its_image(tmp_path):
    write_pairs(tmp_path, "images", "masks", range(2))
    for number in range(2):
        Image.fromarray(np.zeros((10, 10), np.uint8)).save(tmp_path / "masks" / f"{number}.png")
    (tmp_path / "classes.txt").write_text("a\nb\n")
    data, _ = open_masks(str(tmp_path), MaskFormat(), 0.5, 0)
    samples = MaskSamples(data, JitterConfig(mean=(0.5,) * 3, std=(0.5,) * 3), Geometry((32, 48), 32), 3)
    with pytest.raises(UnreadableImage, match="its mask has 10x10 pixels, the image 60x40"):
        samples.load(int(data.indices[0]), (0,))
