"""Encoded images or arrays -> upright crops of a given size, decoding no more than the crop needs."""

import io
import math
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
JPEG_SCALES = (1, 2, 4, 8)  # eighths that libjpeg-turbo's fast paths decode to; others take longer than 8
LEAST_DETAIL = 0.7  # of the pixels a side that a crop gets, decoded: 35 dB; 1 would cost 4 % of the time
MOST_SAMPLED = 2.0  # pixels a side for one that linear interpolation may choose from without aliasing
KEPT_DETAIL = 1.5  # the same, where the result is kept for good
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
    source: bytes | NDArray[Any],
    choose_box: BoxChooser,
    size: tuple[int, int],
    chans: int,
    out: NDArray[np.uint8] | None = None,
) -> Pixels:
    """Decode an image, take the crop that ``choose_box`` names, and resize it to ``size``.

    Args:
        source: an encoded image (any format Pillow reads, TIFF, NumPy's .npy), or an array (H, W, C).
        choose_box: called with the upright image's height and width.
        size: (height, width) of the result.
        chans: 3 for RGB, 1 for grey; any other number has to be the image's own.
        out: (height, width, chans), where the result may be written; see whether it is what is returned.

    Returns:
        (height, width, chans): uint8 where the image has 8 bits, else float32, integers scaled so that
        the largest of their type is 1.

    Raises:
        UnreadableImage: broken, unsupported, absurdly large, or of other channels, with the reason.
    """
    try:
        if isinstance(source, bytes) and source[:3] == JPEG_MAGIC and chans in (1, 3):
            header = _read_header(source)
            if header is not None:
                return _crop_jpeg(source, header, choose_box, size, chans, out)
        pixels = _decode_whole(source, chans)
        return _resize(to_pixels(_cut(pixels, choose_box(pixels.shape[0], pixels.shape[1]))), size, out)
    except READ_ERRORS as error:
        raise UnreadableImage(_reason(error)) from error


def shrink(source: bytes | NDArray[Any], short_side: int, chans: int = 3) -> Pixels:
    """A whole image, upright, its shorter side at most ``short_side`` pixels, bicubic: (H, W, chans).

    It is made to be kept: from a decode of more pixels than `crop_and_resize` takes. Smaller images stay
    as they are. Raises UnreadableImage, also for images of more than 8 bits a channel.
    """
    try:
        header = None
        if isinstance(source, bytes) and source[:3] == JPEG_MAGIC:
            header = _read_header(source)
        if header is None:
            whole, eighths, orientation = to_pixels(_decode_whole(source, chans)), 8, 1
            height, width = whole.shape[:2]
        else:
            assert isinstance(source, bytes)
            height, width, orientation = header
            eighths = _eighths(min(height, width), KEPT_DETAIL * short_side)
            whole = _decode_eighths(source, header, eighths, chans)
            eighths = 8 if whole.shape[:2] == (height, width) else eighths
        if whole.dtype != np.uint8:
            raise UnreadableImage("more than 8 bits a channel")
        scale = short_side / min(height, width)
        if scale < 1:
            size = max(1, round(width * scale)), max(1, round(height * scale))
            picture = Image.fromarray(whole if chans == 3 else whole[..., 0])
            box = (0.0, 0.0, width * eighths / 8, height * eighths / 8)
            whole = _as_chans(np.asarray(picture.resize(size, Image.Resampling.BICUBIC, box)))
        return turn_upright(whole, orientation)
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


class _Header(NamedTuple):
    height: int  # as it is stored
    width: int
    orientation: int  # EXIF's, 1..8


def _read_header(data: bytes) -> _Header | None:
    """None where only Pillow may understand the file, such as CMYK."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if colorspace not in ("YCbCr", "RGB", "Gray"):
        return None
    _check_pixels(height, width)
    return _Header(height, width, _orientation(data))


def _eighths(side: int, needed: float) -> int:
    """The smallest scale at which ``side`` has the pixels that are needed, in eighths."""
    return next((eighths for eighths in JPEG_SCALES if side * eighths >= 8 * needed), 8)


def _decode_eighths(data: bytes, header: _Header, eighths: int, chans: int) -> Pixels:
    """(ceil(H * eighths / 8), ceil(W * eighths / 8), chans), not turned; whole where only Pillow reads it."""
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(
            data,
            "RGB" if chans == 3 else "GRAY",
            min_height=-(-header.height * eighths // 8),
            min_width=-(-header.width * eighths // 8),
        )
    except ValueError:  # strict about harmless damage: let Pillow decide
        pixels = _decode_any(data, chans, upright=False)
    return pixels


def _crop_jpeg(
    data: bytes,
    header: _Header,
    choose_box: BoxChooser,
    size: tuple[int, int],
    chans: int,
    out: NDArray[np.uint8] | None,
) -> Pixels:
    """Decode at the smallest of JPEG's own scales that leaves enough of the crop's detail, and resize that.

    The crop is found in the stored image and only what becomes of it is turned.
    """
    height, width, orientation = header
    turned = orientation >= 5
    box = choose_box(width, height) if turned else choose_box(height, width)
    if orientation != 1:
        box = _stored_box(box, height, width, orientation)
        size = (size[1], size[0]) if turned else size
    eighths = max(
        _eighths(box.height, LEAST_DETAIL * min(size[0], box.height)),
        _eighths(box.width, LEAST_DETAIL * min(size[1], box.width)),
    )
    pixels = _decode_eighths(data, header, eighths, chans)
    if eighths == 8 or pixels.shape[:2] == (height, width):
        crop = _resize(_cut(pixels, box), size, out)
    else:
        crop = _sample(pixels, box, eighths / 8, size, out)
    return turn_upright(crop, orientation)


def _stored_box(box: Box, height: int, width: int, orientation: int) -> Box:
    """A box of the upright image, in the image of ``height`` and ``width`` that is stored."""
    top, left, h, w = box
    if orientation >= 5:
        height, width = width, height
    if orientation in (2, 3, 6, 7):
        left = width - left - w
    if orientation in (3, 4, 7, 8):
        top = height - top - h
    return Box(left, top, w, h) if orientation >= 5 else Box(top, left, h, w)


def _sample(
    pixels: Pixels, box: Box, scale: float, size: tuple[int, int], out: NDArray[np.uint8] | None
) -> Pixels:
    """Resize a box of the image that ``pixels`` are a reduction of, whose edges fall between pixels."""
    ratio = box.height * scale / size[0], box.width * scale / size[1]
    if max(ratio) > MOST_SAMPLED:
        top, left = math.floor(box.top * scale), math.floor(box.left * scale)
        bottom, right = round((box.top + box.height) * scale), round((box.left + box.width) * scale)
        return _resize(_cut(pixels, Box(top, left, max(bottom - top, 1), max(right - left, 1))), size, out)
    down, across = box.top * scale + ratio[0] / 2 - 0.5, box.left * scale + ratio[1] / 2 - 0.5
    return _as_chans(
        cv2.warpAffine(
            pixels,
            np.array([[ratio[1], 0, across], [0, ratio[0], down]]),
            (size[1], size[0]),
            dst=out,
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
    )


def _cut(pixels: NDArray[Any], box: Box) -> NDArray[Any]:
    return pixels[box.top : box.top + box.height, box.left : box.left + box.width]


def _decode_any(data: bytes, chans: int, upright: bool = True) -> Pixels:
    """Pillow's decoders: any format, first frame, 8 bits; RGB and grey are put on white."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data)) as image:
            _check_pixels(image.height, image.width)
            image.load()
            turned = ImageOps.exif_transpose(image) if upright else image.copy()
    converted = _to_eight_bits(turned, chans) if chans in (1, 3) else _stored_channels(turned, chans)
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


def _resize(pixels: Pixels, size: tuple[int, int], out: NDArray[np.uint8] | None) -> Pixels:
    """Bicubic when enlarging; when shrinking, the mean over the area of each new pixel."""
    height, width, chans = pixels.shape
    if not height or not width:
        raise UnreadableImage("the image has no pixels")
    if (height, width) == size:
        return pixels
    shrinks = height >= size[0] and width >= size[1]
    way = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    shape = (size[1], size[0])
    if chans <= CV_CHANNELS:
        return _as_chans(
            cv2.resize(pixels, shape, dst=out if pixels.dtype == np.uint8 else None, interpolation=way)
        )
    parts = [
        _as_chans(cv2.resize(part, shape, interpolation=way))
        for part in np.split(pixels, range(CV_CHANNELS, chans, CV_CHANNELS), axis=2)
    ]
    return np.concatenate(parts, axis=2)


def _check_pixels(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise UnreadableImage(f"{width}x{height} pixels: refused as a decompression bomb")


def _orientation(data: bytes) -> int:
    """EXIF orientation 1..8 of a JPEG; 1 (upright) where there is none."""
    if data.find(b"Exif\x00", 0, 65536) < 0:
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
