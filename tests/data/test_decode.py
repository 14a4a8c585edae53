import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from conftest import encoded, photo, whole
from fastmim.data.decode.image import crop_and_resize, decode, shrink
from fastmim.data.decode.pixels import UnreadableImage
from fastmim.data.decode.resize import Box


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = np.mean((a.astype(float) - b.astype(float)) ** 2)
    return 10 * np.log10(255**2 / max(error, 1e-6))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_formats(kind, mode):
    image = Image.fromarray(photo(0)).convert(mode)
    options = {"quality": 98} if kind in ("JPEG", "WEBP") else {}
    result = crop_and_resize(encoded(image, kind, **options), whole, image.size[::-1], 3)
    assert result.shape == (48, 64, 3)
    assert psnr(result, np.asarray(image.convert("RGB"))) > 28


def test_palette_rgba_cmyk_and_sixteen_bits():
    picture = photo(1)
    image = Image.fromarray(picture)
    palette = encoded(image.quantize(64), "PNG")
    assert psnr(decode(palette), picture) > 25
    assert psnr(decode(encoded(image.convert("CMYK"), "JPEG", quality=98)), picture) > 25
    clear = image.copy()
    clear.putalpha(0)
    assert (decode(encoded(clear, "PNG")) == 255).all()  # on white, not the colours nobody sees
    deep = Image.fromarray((picture[..., 0].astype(np.uint16) << 8) + 37)
    assert np.array_equal(decode(encoded(deep, "PNG"))[..., 1], picture[..., 0])


def test_one_channel():
    grey = crop_and_resize(encoded(Image.fromarray(photo(2)), "JPEG"), whole, (24, 32), 1)
    assert grey.shape == (24, 32, 1)


def test_the_first_frame_of_a_gif():
    frames = [Image.fromarray(photo(seed)).convert("P") for seed in (3, 4)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.array_equal(decode(data), np.asarray(frames[0].convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(photo(5)), "JPEG", quality=98, exif=exif.tobytes())
    with Image.open(io.BytesIO(data)) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    height, width = upright.shape[:2]
    assert np.array_equal(crop_and_resize(data, whole, (height, width), 3), upright)
    box = Box(4, 8, 16, 24)
    part = crop_and_resize(data, lambda h, w: box, (16, 24), 3)
    assert psnr(part, upright[4:20, 8:32]) > 45


def test_a_reduced_decode_gives_the_same_crop():
    large = np.asarray(Image.fromarray(photo(6)).resize((640, 480), Image.Resampling.BICUBIC))
    data = encoded(Image.fromarray(large), "JPEG", quality=95)
    box = Box(96, 64, 320, 512)
    result = crop_and_resize(data, lambda h, w: box, (40, 64), 3)
    crop = Image.fromarray(large).crop((64, 96, 576, 416))
    assert psnr(result, np.asarray(crop.resize((64, 40), Image.Resampling.BICUBIC))) > 30


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_crop_of_a_reduced_decode_lies_where_the_box_does(orientation):
    """A fraction of a pixel to the side would cost 10 dB; sides of 8n+1 show where pixels are cut off."""
    large = np.asarray(Image.fromarray(photo(6)).resize((641, 481), Image.Resampling.BICUBIC))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(large), "JPEG", quality=98, exif=exif.tobytes())
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image)
    for box in (Box(101, 67, 333, 301), Box(upright.height - 333, upright.width - 301, 333, 301)):
        result = crop_and_resize(data, lambda h, w, box=box: box, (120, 110), 3)
        crop = upright.crop((box.left, box.top, box.left + box.width, box.top + box.height))
        assert psnr(result, np.asarray(crop.resize((110, 120), Image.Resampling.BICUBIC))) > 34


@pytest.mark.parametrize("chans", [1, 3])
@pytest.mark.parametrize("side", [300, 128, 100, 40])
def test_a_crop_is_the_same_in_its_place(side, chans):
    data = encoded(Image.fromarray(photo(9, 400, 420)), "JPEG")
    place = np.zeros((128, 128, chans), np.uint8)
    apart = crop_and_resize(data, lambda h, w: Box(3, 5, side, side), (128, 128), chans)
    result = crop_and_resize(data, lambda h, w: Box(3, 5, side, side), (128, 128), chans, place)
    assert np.array_equal(result, apart)
    assert result.shape == apart.shape == (128, 128, chans)
    kept = apart.copy()
    crop_and_resize(encoded(Image.fromarray(photo(10, 400, 420)), "JPEG"), whole, (128, 128), chans)
    assert np.array_equal(apart, kept)  # nothing of it lies in memory that is used again


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_an_image_is_shrunk_but_never_enlarged(kind):
    large = Image.fromarray(photo(6)).resize((640, 480), Image.Resampling.BICUBIC)
    shrunk = shrink(encoded(large, kind), 144)
    assert shrunk.shape == (144, 192, 3)
    assert psnr(shrunk, np.asarray(large.resize((192, 144), Image.Resampling.BICUBIC))) > 35
    assert shrink(encoded(large, kind), 1000).shape == (480, 640, 3)
    assert shrink(encoded(large.convert("L"), kind), 144, 1).shape == (144, 192, 1)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert shrink(encoded(large, kind, exif=exif.tobytes()), 144).shape == (192, 144, 3)


def test_more_than_eight_bits_are_not_shrunk():
    with pytest.raises(UnreadableImage, match="more than 8 bits"):
        shrink(np.zeros((9, 9, 3), np.uint16), 4)


def test_an_image_smaller_than_the_crop_is_enlarged():
    assert crop_and_resize(encoded(Image.fromarray(photo(7, 5, 7)), "PNG"), whole, (32, 32), 3).shape == (
        32,
        32,
        3,
    )


def giant_png() -> bytes:
    """A header that promises 40,000 x 40,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def whole_jpeg() -> bytes:
    return encoded(Image.fromarray(photo(8, 200, 200)), "JPEG")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not an image"),
        (b"this is a text", "not an image"),
        (whole_jpeg()[:2000], "truncated"),
        (encoded(Image.fromarray(photo(8)), "PNG")[:200], ""),
        (giant_png(), "bomb"),
        (encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), "floating-point"),
    ],
    ids=["empty", "text", "cut jpeg", "cut png", "bomb", "float"],
)
def test_what_cannot_be_used_has_a_reason(data, reason):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UnreadableImage) as raised:
            crop_and_resize(data, whole, (8, 8), 3)
    assert reason in str(raised.value)
    assert str(raised.value)
