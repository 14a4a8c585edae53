import io
import subprocess
import sys

import numpy as np
import pytest
import tifffile
from PIL import Image

from conftest import encoded, photo, whole
from fastmim.data.decode.image import crop_and_resize, decode
from fastmim.data.decode.pixels import UnreadableImage
from fastmim.data.decode.resize import Box
from fastmim.data.sources.base import ArrayImages
from fastmim.data.sources.open import open_images

CONTIG = {"photometric": "minisblack", "planarconfig": "contig"}
PLANES = {"photometric": "minisblack", "planarconfig": "separate"}


def tiff(array: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def bands(chans: int, kind: type = np.uint16, height: int = 40, width: int = 56) -> np.ndarray:
    """(H, W, C) over the whole range of an integer type, or 0..1."""
    generator = np.random.default_rng(chans)
    if np.issubdtype(kind, np.floating):
        return generator.random((height, width, chans)).astype(kind)
    return generator.integers(0, np.iinfo(kind).max, (height, width, chans), kind, endpoint=True)


def reason(source: bytes | np.ndarray, chans: int) -> str:
    with pytest.raises(UnreadableImage) as raised:
        crop_and_resize(source, whole, (8, 8), chans)
    return str(raised.value)


@pytest.mark.parametrize("options", [CONTIG, {}, CONTIG | {"compression": "zlib"}], ids=str)
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_bands_side_by_side_in_a_tiff(kind, options):
    array = bands(13, kind)
    top = np.iinfo(kind).max if kind is np.uint16 else 1
    result = decode(tiff(array, **options), 13)
    assert result.dtype == (np.uint8 if kind is np.uint8 else np.float32)
    assert np.allclose(result, array / top, atol=1e-7)


@pytest.mark.parametrize("options", [PLANES, {}, {"imagej": True}], ids=str)
def test_a_plane_or_a_page_for_each_band(options):
    array = bands(13)
    data = tiff(np.moveaxis(array, -1, 0), **options)
    assert np.array_equal(decode(data, 13), array.astype(np.float32) / np.float32(65535))


@pytest.mark.parametrize("compression", ["lzw", "zstd", "deflate"])
def test_compressed_bands(compression):
    pytest.importorskip("imagecodecs")
    array = bands(5)
    data = tiff(array, compression=compression, predictor=True, **CONTIG)
    assert np.allclose(decode(data, 5), array / 65535, atol=1e-7)


def test_what_is_missing_to_decompress_is_named(tmp_path):
    pytest.importorskip("imagecodecs")
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(bands(5), compression="lzw", **CONTIG))
    code = (
        "import sys; sys.modules['imagecodecs'] = None\n"
        "from fastmim.data.decode.image import decode\n"
        f"decode(open({str(path)!r}, 'rb').read(), 5)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'fastmim[multiband]'" in done.stderr.splitlines()[-1]


def test_a_tiff_turned_by_its_orientation_is_upright():
    array = bands(5)
    data = tiff(array, extratags=[(0x0112, "H", 1, 3, True)], **CONTIG)
    assert np.array_equal(decode(data, 5), decode(tiff(array, **CONTIG), 5)[::-1, ::-1])


def test_three_deep_bands_keep_their_bits_and_eight_bit_tiffs_stay_as_they_were():
    deep = bands(3)
    assert np.allclose(decode(tiff(deep, photometric="rgb"), 3), deep / 65535, atol=1e-7)
    grey = deep[..., 0]
    assert np.allclose(decode(tiff(grey), 1)[..., 0], grey / 65535, atol=1e-7)
    assert np.array_equal(decode(tiff(grey), 3)[..., 2], grey >> 8)
    picture = photo(0)
    for data in (tiff(picture, photometric="rgb"), tiff(picture, **CONTIG)):
        assert np.array_equal(decode(data, 3), picture)
    pages = [Image.fromarray(photo(seed)[..., 0]) for seed in range(5)]
    stack = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert np.array_equal(decode(stack, 1)[..., 0], photo(0)[..., 0])  # the first page
    assert np.array_equal(decode(stack, 5)[..., 4], photo(4)[..., 0])  # a band each


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_axis_as_long_as_the_channels_holds_them(axis):
    array = bands(13)
    assert np.array_equal(decode(npy(np.moveaxis(array, 2, axis)), 13), decode(array, 13))


def test_of_several_such_axes_the_last_one_holds_the_channels():
    array = bands(13, np.uint8, 13, 20)
    assert np.array_equal(decode(npy(array), 13), array)
    assert decode(npy(array[:, :, 0]), 1).shape == (13, 20, 1)


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (np.uint16, 65535, 1),
        (">u2", 65535, 1),
        (np.int16, 32767, 1),
        (np.int16, -32767, -1),
        (np.int8, 127, 1),
        (np.uint32, 2**31, 0.5),
        (np.int64, 2**62, 0.5),
        (np.bool_, True, 1),
        (np.float16, 3.5, 3.5),
        (np.float64, -273.25, -273.25),
    ],
)
def test_the_type_says_the_range(kind, value, expected):
    for source in (npy(np.full((6, 7, 2), value, kind)), np.full((6, 7, 2), value, kind)):
        result = crop_and_resize(source, whole, (12, 9), 2)
        assert result.dtype == np.float32
        assert np.allclose(result, expected, rtol=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_values_that_are_not_finite_make_an_image_unreadable_wherever_the_crop_lies(bad):
    array = bands(5, np.float64)
    array[0, 0, 3] = bad
    for source in (array, npy(array)):
        with pytest.raises(UnreadableImage, match="not finite"):
            crop_and_resize(source, lambda h, w: Box(20, 20, 8, 8), (8, 8), 5)


def test_four_channels_are_taken_as_they_are():
    clear = np.dstack([photo(1), np.linspace(0, 255, 48 * 64).reshape(48, 64).astype(np.uint8)])
    for kind in ("PNG", "TIFF"):
        assert np.array_equal(decode(encoded(Image.fromarray(clear), kind), 4), clear)
    inks = Image.fromarray(photo(2)).convert("CMYK")
    assert np.array_equal(decode(encoded(inks, "TIFF"), 4), np.asarray(inks))
    inked = decode(encoded(inks, "JPEG", quality=98), 4).astype(int)
    assert np.abs(inked - np.asarray(inks)).mean() < 8
    assert (decode(encoded(Image.fromarray(clear), "PNG"), 3)[0, 0] == 255).all()  # on white, as before


@pytest.mark.parametrize(
    ("source", "chans", "expected"),
    [
        (npy(bands(10, height=64, width=64)), 13, "13 channels are needed, the array is 64x64x10"),
        (bands(3, np.uint8), 1, "1 channel is needed, the array is 40x56x3"),
        (npy(bands(1)[..., 0]), 3, "3 channels are needed, the array is 40x56"),
        (tiff(bands(10), **CONTIG), 13, "13 channels are needed, the array is 40x56x10"),
        (tiff(bands(10), **CONTIG), 3, "3 channels are needed, the array is 40x56x10"),
        (tiff(bands(10), **CONTIG), 40, "40 channels are needed"),
        (encoded(Image.fromarray(photo(0)), "JPEG"), 13, "13 channels are needed, the image has 3"),
        (encoded(Image.fromarray(photo(0)), "PNG"), 4, "4 channels are needed, the image has 3"),
        (encoded(Image.fromarray(photo(0)).convert("P"), "PNG"), 4, "the image has 3"),
        (np.zeros((5, 8, 8, 3)), 3, "the array has 4 (5x8x8x3)"),
        (tiff(np.zeros((5, 8, 8, 3), np.uint8)), 5, "5 channels are needed, the image has 3"),
        (np.zeros((0, 8, 3)), 3, "no pixels"),
        (np.zeros((8, 8, 3), np.complex64), 3, "complex64"),
        (npy(bands(5))[:2000], 5, ""),
        (npy(bands(5))[:30], 5, ""),
        (tiff(bands(5), **CONTIG)[:2000], 5, "failed to read"),
        (tiff(bands(5), compression="zlib", **CONTIG)[:2000], 5, ""),
        (tiff(bands(5), **CONTIG)[:9], 5, "corrupted"),
        (tiff(bands(5), **CONTIG)[:9], 3, "corrupted"),
    ],
    ids=range(19),
)
def test_what_does_not_fit_has_a_reason(source, chans, expected, capfd):
    assert expected in reason(source, chans)
    assert reason(source, chans)
    assert capfd.readouterr().err == ""


def test_pickled_objects_are_not_loaded():
    buffer = io.BytesIO()
    np.save(buffer, np.array([[{}]]), allow_pickle=True)
    assert "allow_pickle" in reason(buffer.getvalue(), 1)


@pytest.mark.parametrize("chans", [2, 4, 5, 13, 513])
@pytest.mark.parametrize("size", [(10, 14), (16, 16), (90, 100), (30, 80)], ids=str)
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_channels_are_resized_independently(chans, size, kind):
    array = bands(chans, kind)
    box = Box(3, 5, 32, 48)
    result = crop_and_resize(array, lambda h, w: box, size, chans)
    assert result.shape == (*size, chans)
    for channel in (0, chans // 2, chans - 1):
        alone = crop_and_resize(array[..., channel], lambda h, w: box, size, 1)
        assert np.allclose(result[..., channel : channel + 1], alone, atol=1 if kind is np.uint8 else 1e-5)


def test_enlarging_floats_clips_nothing():
    array = np.zeros((8, 8, 5), np.float32)
    array[:, 4:] = 700
    result = crop_and_resize(array, whole, (32, 32), 5)
    assert result.min() < 0
    assert result.max() > 700


def test_a_folder_and_an_array_hold_the_same_images(tmp_path):
    images = np.stack([bands(6), bands(6)[::-1]])
    np.save(tmp_path / "0.npy", images[0])
    (tmp_path / "1.tiff").write_bytes(tiff(images[1], **CONTIG))
    folder, memory = open_images(str(tmp_path)), ArrayImages(images, "image")
    assert len(folder) == len(memory) == 2
    for index in range(2):
        assert np.array_equal(decode(folder.read(index), 6), decode(memory.read(index), 6))
