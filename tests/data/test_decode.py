import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from conftest import photo
from fastmim.data.decode import Box, UnreadableImage, crop_and_resize, decode


def whole(height: int, width: int) -> Box:
    return Box(0, 0, height, width)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


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
