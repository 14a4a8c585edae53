"""Encoded images -> upright crops of a given size, decoding no more than the crop needs."""

import io
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

Pixels = NDArray[np.uint8]

MAX_PIXELS = 178_956_970  # the limit at which Pillow refuses, too: half a gigabyte of RGB
JPEG_MAGIC = b"\xff\xd8\xff"
ORIENTATION_TAG = 0x0112
READ_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    MemoryError,
    Image.DecompressionBombError,
    cv2.error,
)


class Box(NamedTuple):
    """A crop, in pixels of the upright image."""

    top: int
    left: int
    height: int
    width: int


BoxChooser = Callable[[int, int], Box]  # (height, width) -> the crop to take


class UnreadableImage(Exception):
    """An image cannot be used; the message is the reason."""


def crop_and_resize(
    source: bytes | Pixels, choose_box: BoxChooser, size: tuple[int, int], chans: int
) -> Pixels:
    """Decode an image, take the crop that ``choose_box`` names, and resize it to ``size``.

    Args:
        source: an encoded image of any format Pillow reads, or pixels (H, W, C), uint8.
        choose_box: called with the upright image's height and width.
        size: (height, width) of the result.
        chans: 3 for RGB, 1 for grey.

    Returns:
        (height, width, chans), uint8.

    Raises:
        UnreadableImage: broken, unsupported or absurdly large, with the reason.
    """
    try:
        if isinstance(source, np.ndarray):
            pixels = source
            box = choose_box(pixels.shape[0], pixels.shape[1])
        elif source[:3] == JPEG_MAGIC:
            pixels, box = _decode_jpeg(source, choose_box, size, chans)
        else:
            pixels = _decode_any(source, chans)
            box = choose_box(pixels.shape[0], pixels.shape[1])
        return _resize(pixels[box.top : box.top + box.height, box.left : box.left + box.width], size)
    except UnreadableImage:
        raise
    except READ_ERRORS as error:
        raise UnreadableImage(_reason(error)) from error


def decode(source: bytes | Pixels, chans: int = 3) -> Pixels:
    """A whole image at its own size: (H, W, chans), uint8. Raises UnreadableImage."""
    if isinstance(source, np.ndarray):
        return source
    try:
        return _decode_any(source, chans)
    except READ_ERRORS as error:
        raise UnreadableImage(_reason(error)) from error


def _decode_jpeg(
    data: bytes, choose_box: BoxChooser, size: tuple[int, int], chans: int
) -> tuple[Pixels, Box]:
    """Decode at the smallest of JPEG's own scales (1/8 to 1) that still gives the crop ``size`` pixels."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        colorspace = "unreadable"
    if colorspace not in ("YCbCr", "RGB", "Gray"):  # CMYK, or a header only Pillow may understand
        pixels = _decode_any(data, chans)
        return pixels, choose_box(pixels.shape[0], pixels.shape[1])
    _check_pixels(height, width)
    orientation = _orientation(data)
    turned = orientation >= 5
    upright = (width, height) if turned else (height, width)
    box = choose_box(*upright)
    least = (
        min(upright[0], -(-upright[0] * size[0] // box.height)),
        min(upright[1], -(-upright[1] * size[1] // box.width)),
    )
    try:
        pixels = simplejpeg.decode_jpeg(
            data,
            "RGB" if chans == 3 else "GRAY",
            min_height=least[1] if turned else least[0],
            min_width=least[0] if turned else least[1],
        )
    except ValueError:  # strict about harmless damage: let Pillow decide
        pixels = _decode_any(data, chans)
        return pixels, box
    pixels = _turn_upright(pixels, orientation)
    scale = (pixels.shape[0] / upright[0], pixels.shape[1] / upright[1])
    top, left = round(box.top * scale[0]), round(box.left * scale[1])
    bottom, right = round((box.top + box.height) * scale[0]), round((box.left + box.width) * scale[1])
    return pixels, Box(top, left, max(bottom - top, 1), max(right - left, 1))


def _decode_any(data: bytes, chans: int) -> Pixels:
    """Pillow's decoders: any format, first frame, upright, 8 bits, on white where transparent."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data)) as image:
            _check_pixels(image.height, image.width)
            image.load()
            upright = ImageOps.exif_transpose(image)
    return _as_chans(np.asarray(_to_eight_bits(upright, chans)))


def _to_eight_bits(image: Image.Image, chans: int) -> Image.Image:
    mode = "RGB" if chans == 3 else "L"
    if image.mode.startswith("I"):  # 16-bit grey, or 32-bit that holds 16-bit values
        values = np.asarray(image).astype(np.int64)
        if values.size and (values.min() < 0 or values.max() > 0xFFFF):
            raise UnreadableImage("32-bit integers outside 0..65535: store it with 8 or 16 bits")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert(mode)
    if image.mode == "F":
        raise UnreadableImage("floating-point pixels of unknown range: store it with 8 or 16 bits")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert(mode)
    return image.convert(mode)


def _as_chans(pixels: NDArray[Any]) -> Pixels:
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _resize(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Bicubic when enlarging; when shrinking, the mean over the area of each new pixel."""
    height, width = pixels.shape[:2]
    if not height or not width:
        raise UnreadableImage("the image has no pixels")
    if (height, width) == size:
        return pixels
    shrinks = height >= size[0] and width >= size[1]
    resized = cv2.resize(
        pixels, (size[1], size[0]), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    )
    return _as_chans(resized)


def _check_pixels(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise UnreadableImage(f"{width}x{height} pixels: refused as a decompression bomb")


def _orientation(data: bytes) -> int:
    """EXIF orientation 1..8 of a JPEG; 1 (upright) where there is none."""
    if b"Exif\x00" not in data[:65536]:
        return 1
    try:
        with Image.open(io.BytesIO(data)) as image:
            value = image.getexif().get(ORIENTATION_TAG, 1)
    except READ_ERRORS:
        return 1
    return value if value in range(1, 9) else 1


def _turn_upright(pixels: Pixels, orientation: int) -> Pixels:
    if orientation == 1:
        return pixels
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _reason(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image in a format that Pillow reads"
    if isinstance(error, Image.DecompressionBombError):
        return "refused as a decompression bomb"
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
