"""Encoded images or arrays -> upright crops of a given size, decoding no more than the crop needs."""

import io
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from fastmim.data import jpeg
from fastmim.data.bands import (
    NPY_MAGIC,
    TIFF_MAGICS,
    Pixels,
    UnreadableImage,
    channels_last,
    channels_needed,
    check_pixels,
    first_line,
    is_ordinary_tiff,
    read_npy,
    read_tiff,
    to_pixels,
    turn_upright,
)
from fastmim.data.resize import Box, as_chans, cut, resize, sample

KEPT_DETAIL = 1.5  # pixels a side that are decoded for one that is kept for good
READ_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    MemoryError,
    Image.DecompressionBombError,
    cv2.error,
)


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
        if isinstance(source, bytes) and source[:3] == jpeg.MAGIC and chans in (1, 3):
            header = jpeg.read_header(source)
            if header is not None:
                return _crop_jpeg(source, header, choose_box, size, chans, out)
        pixels = _decode_whole(source, chans)
        return resize(to_pixels(cut(pixels, choose_box(pixels.shape[0], pixels.shape[1]))), size, out)
    except READ_ERRORS as error:
        raise UnreadableImage(_reason(error)) from error


def shrink(source: bytes | NDArray[Any], short_side: int, chans: int = 3) -> Pixels:
    """A whole image, upright, its shorter side at most ``short_side`` pixels, bicubic: (H, W, chans).

    It is made to be kept: from a decode of more pixels than `crop_and_resize` takes. Smaller images stay
    as they are. Raises UnreadableImage, also for images of more than 8 bits a channel.
    """
    try:
        whole = _whole_jpeg(source, short_side, chans) if isinstance(source, bytes) else None
        if whole is None:
            pixels = to_pixels(_decode_whole(source, chans))
            if pixels.dtype != np.uint8:
                raise UnreadableImage("more than 8 bits a channel")
            whole = _Whole(pixels, pixels.shape[0], pixels.shape[1], 1)
        scale = short_side / min(whole.height, whole.width)
        if scale >= 1:
            return turn_upright(whole.pixels, whole.orientation)
        size = max(1, round(whole.width * scale)), max(1, round(whole.height * scale))
        picture = Image.fromarray(whole.pixels if chans == 3 else whole.pixels[..., 0])
        box = (0.0, 0.0, whole.width, whole.height)
        shrunk = np.asarray(picture.resize(size, Image.Resampling.BICUBIC, box))
        return turn_upright(as_chans(shrunk), whole.orientation)
    except READ_ERRORS as error:
        raise UnreadableImage(_reason(error)) from error


class _Whole(NamedTuple):
    pixels: Pixels
    height: float  # of what the image covers of them
    width: float
    orientation: int


def _whole_jpeg(data: bytes, short_side: int, chans: int) -> _Whole | None:
    """Reduced as far as it still has more detail than is kept; None where Pillow has to read it."""
    header = jpeg.read_header(data) if data.startswith(jpeg.MAGIC) else None
    if header is None:
        return None
    height, width, orientation = header
    eighths = jpeg.scale_for(min(height, width), KEPT_DETAIL * short_side)
    try:
        pixels = jpeg.decode_reduced(data, header, eighths, chans, keep=True)
    except ValueError:  # strict about harmless damage
        return None
    return _Whole(pixels, height * eighths / 8, width * eighths / 8, orientation)


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


def _crop_jpeg(
    data: bytes,
    header: jpeg.Header,
    choose_box: BoxChooser,
    size: tuple[int, int],
    chans: int,
    out: NDArray[np.uint8] | None,
) -> Pixels:
    """Decode no more than the crop needs and resize that, in the stored image; turn what becomes of it."""
    height, width, orientation = header
    turned = orientation >= 5
    box = choose_box(width, height) if turned else choose_box(height, width)
    if orientation != 1:
        box = jpeg.stored_box(box, header)
        size = (size[1], size[0]) if turned else size
    eighths = jpeg.eighths_for(box, size)
    try:
        pixels: Pixels = jpeg.decode_reduced(data, header, eighths, chans, keep=False)
    except ValueError:  # strict about harmless damage: let Pillow decide
        pixels, eighths = _decode_any(data, chans, upright=False), 8
    if eighths < 8:
        crop = sample(pixels, box, eighths / 8, size, out)
    else:
        part = cut(pixels, box)
        crop = resize(part, size, out)
        if crop is part:  # the next image will be decoded there
            crop = crop.copy()
    return turn_upright(crop, orientation)


def _decode_any(data: bytes, chans: int, upright: bool = True) -> Pixels:
    """Pillow's decoders: any format, first frame, 8 bits; RGB and grey are put on white."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data)) as image:
            check_pixels(image.height, image.width)
            image.load()
            turned = ImageOps.exif_transpose(image) if upright else image.copy()
    converted = _to_eight_bits(turned, chans) if chans in (1, 3) else _stored_channels(turned, chans)
    return as_chans(np.asarray(converted))


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


def _reason(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image in a format that Pillow reads"
    if isinstance(error, Image.DecompressionBombError):
        return "refused as a decompression bomb"
    return first_line(error)
