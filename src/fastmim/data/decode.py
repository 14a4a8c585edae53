"""Encoded images or arrays -> upright crops of a given size, decoding no more than the crop needs."""

import io
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from fastmim.data.bands import (
    NPY_MAGIC,
    ORIENTATION_TAG,
    TIFF_MAGICS,
    Pixels,
    UnreadableImage,
    channels_last,
    channels_needed,
    first_line,
    is_ordinary_tiff,
    read_npy,
    read_tiff,
    to_pixels,
    turn_upright,
)

MAX_PIXELS = 178_956_970  # the limit at which Pillow refuses, too: half a gigabyte of RGB
JPEG_MAGIC = b"\xff\xd8\xff"
CV_CHANNELS = 4  # the most that each way of cv2.resize takes
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


def crop_and_resize(
    source: bytes | NDArray[Any], choose_box: BoxChooser, size: tuple[int, int], chans: int
) -> Pixels:
    """Decode an image, take the crop that ``choose_box`` names, and resize it to ``size``.

    Args:
        source: an encoded image (any format Pillow reads, TIFF, NumPy's .npy), or an array (H, W, C).
        choose_box: called with the upright image's height and width.
        size: (height, width) of the result.
        chans: 3 for RGB, 1 for grey; any other number has to be the image's own.

    Returns:
        (height, width, chans): uint8 where the image has 8 bits, else float32, integers scaled so that
        the largest of their type is 1.

    Raises:
        UnreadableImage: broken, unsupported, absurdly large, or of other channels, with the reason.
    """
    try:
        if isinstance(source, bytes) and source[:3] == JPEG_MAGIC and chans in (1, 3):
            pixels, box = _decode_jpeg(source, choose_box, size, chans)
        else:
            pixels = _decode_whole(source, chans)
            box = choose_box(pixels.shape[0], pixels.shape[1])
        crop = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
        return _resize(to_pixels(crop), size)
    except READ_ERRORS as error:
        raise UnreadableImage(_reason(error)) from error


def decode(source: bytes | NDArray[Any], chans: int = 3) -> Pixels:
    """A whole image at its own size: (H, W, chans), see `crop_and_resize`. Raises UnreadableImage."""
    try:
        return to_pixels(_decode_whole(source, chans))
    except READ_ERRORS as error:
        raise UnreadableImage(_reason(error)) from error


def _decode_whole(source: bytes | NDArray[Any], chans: int) -> NDArray[Any]:
    """(H, W, chans), upright, of the type that it is stored in."""
    if isinstance(source, np.ndarray):
        return channels_last(source, chans)
    if source.startswith(NPY_MAGIC):
        return channels_last(read_npy(source), chans)
    if source.startswith(TIFF_MAGICS):
        if chans in (1, 3) and is_ordinary_tiff(source, chans):
            try:
                return _decode_any(source, chans)
            except UnidentifiedImageError:  # such as three bands that are not called RGB
                pass
        return read_tiff(source, chans)
    return _decode_any(source, chans)


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
    pixels = turn_upright(pixels, orientation)
    scale = (pixels.shape[0] / upright[0], pixels.shape[1] / upright[1])
    top, left = round(box.top * scale[0]), round(box.left * scale[1])
    bottom, right = round((box.top + box.height) * scale[0]), round((box.left + box.width) * scale[1])
    return pixels, Box(top, left, max(bottom - top, 1), max(right - left, 1))


def _decode_any(data: bytes, chans: int) -> Pixels:
    """Pillow's decoders: any format, first frame, upright, 8 bits; RGB and grey are put on white."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data)) as image:
            _check_pixels(image.height, image.width)
            image.load()
            upright = ImageOps.exif_transpose(image)
    converted = _to_eight_bits(upright, chans) if chans in (1, 3) else _stored_channels(upright, chans)
    return _as_chans(np.asarray(converted))


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


def _stored_channels(image: Image.Image, chans: int) -> Image.Image:
    """The channels as they are, such as RGBA or CMYK for 4."""
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    count = len(image.getbands())
    if count != chans:
        raise UnreadableImage(f"{channels_needed(chans)}, the image has {count} ({image.mode})")
    return image


def _as_chans(pixels: NDArray[Any]) -> NDArray[Any]:
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _resize(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Bicubic when enlarging; when shrinking, the mean over the area of each new pixel."""
    height, width = pixels.shape[:2]
    if not height or not width:
        raise UnreadableImage("the image has no pixels")
    if (height, width) == size:
        return pixels
    shrinks = height >= size[0] and width >= size[1]
    way = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    parts = [
        _as_chans(cv2.resize(part, (size[1], size[0]), interpolation=way))
        for part in np.split(pixels, range(CV_CHANNELS, pixels.shape[2], CV_CHANNELS), axis=2)
    ]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)


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


def _reason(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image in a format that Pillow reads"
    if isinstance(error, Image.DecompressionBombError):
        return "refused as a decompression bomb"
    return first_line(error)
