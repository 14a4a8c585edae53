"""Decode images or arrays into upright crops of a given size, decoding no more than the crop needs."""

import io
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from fastmim.data.decode import jpeg, tiff
from fastmim.data.decode.pixels import (
    NPY_MAGIC,
    RGB_OR_GREY,
    Pixels,
    UnreadableImage,
    channels_last,
    channels_needed,
    check_pixels,
    first_line,
    read_npy,
    to_pixels,
    turn_upright,
    with_class,
)
from fastmim.data.decode.resize import (
    Box,
    as_chans,
    cut,
    resize,
    resize_exact,
    resize_fast,
    sample,
    sample_fast,
)
from fastmim.data.settings import MAX_PIXELS

# Accepted formats, by content, under Pillow's names: those of photos and scans. Pillow's readers of other
# formats run programs (PostScript), or are not meant for untrusted files.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "JPEG2000", "TIFF", "BMP", "DIB", "GIF", "PPM")
KEPT_DETAIL = 2.0  # as DETAIL, for the permanent copies that `shrink` makes
MAX_SECONDS = 60.0  # of this thread's CPU time per image; a slower image is unreadable
EXPECTED_ERRORS = (OSError, ValueError, SyntaxError, EOFError, cv2.error)  # errors whose message suffices

Quality = Literal["exact", "full", "fast"]
RESIZE = {"exact": resize_exact, "full": resize, "fast": resize_fast}
SAMPLE = {"exact": sample, "full": sample, "fast": sample_fast}
# Least number of JPEG pixels per side that are decoded for one pixel of a crop.
DETAIL = {"exact": math.inf, "full": 2.0, "fast": 0.6}

BoxChooser = Callable[[int, int], Box]  # (height, width) -> the crop to take


def crop_and_resize(
    source: bytes | NDArray[Any],
    choose_box: BoxChooser,
    size: tuple[int, int],
    chans: int,
    out: NDArray[np.uint8] | None = None,
    quality: Quality = "exact",
    max_pixels: int = MAX_PIXELS,
) -> Pixels:
    """Decode an image, take the crop that ``choose_box`` names, and resize it to ``size``.

    The result is that of decoding the whole image and resizing the crop by Pillow's antialiased bicubic
    interpolation, as closely as ``quality`` says.

    Args:
        source: an encoded image (JPEG, PNG, WebP, AVIF, JPEG 2000, TIFF, BMP, GIF, PPM, NumPy's .npy), or an
            array (H, W, C).
        choose_box: called with the upright image's height and width; returns the crop to take.
        size: (height, width) of the result.
        chans: 3 for RGB, 1 for grey; any other number must be the image's number of channels.
        out: (height, width, chans), a buffer that may be used for the result; compare the returned array.
        quality: ``exact``: by Pillow itself; ``full``: within 58 dB of Pillow on photos, in a sixth of the
            time; ``fast``: blurred, 34 dB, from a decode to fewer pixels than the crop has.
        max_pixels: limit for the image; larger images are refused.

    Returns:
        (height, width, chans): uint8 if the image has 8 bits per channel; else float32, with integers scaled
        so that the largest value of their type is 1.

    Raises:
        UnreadableImage: the image is broken, unsupported, absurdly large, or has other channels; the message
            is the reason.
    """
    with _readable():
        if isinstance(source, bytes) and source[:3] == jpeg.MAGIC and chans in RGB_OR_GREY:
            header = jpeg.read_header(source, max_pixels)
            if header is not None:
                return _crop_jpeg(source, header, choose_box, size, chans, out, quality, max_pixels)
        pixels = _decode_part(source, chans, max_pixels, choose_box)
        return RESIZE[quality](pixels, size, out)


def shrink(
    source: bytes | NDArray[Any], short_side: int, chans: int = 3, max_pixels: int = MAX_PIXELS
) -> Pixels:
    """Shrink a whole image, bicubic, to a shorter side of ``short_side`` pixels, upright: (H, W, chans).

    Smaller images keep their size. Raises UnreadableImage, also for images of more than 8 bits a channel.
    """
    with _readable():
        whole = _whole_jpeg(source, short_side, chans, max_pixels) if isinstance(source, bytes) else None
        if whole is None:
            pixels = _decode_part(source, chans, max_pixels)
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


class _Whole(NamedTuple):
    pixels: Pixels
    height: float  # of the part of ``pixels`` that the image covers
    width: float
    orientation: int


def _whole_jpeg(data: bytes, short_side: int, chans: int, max_pixels: int) -> _Whole | None:
    """Decode a JPEG at the least scale with more detail than is kept; None if Pillow has to read the file."""
    header = jpeg.read_header(data, max_pixels) if data.startswith(jpeg.MAGIC) else None
    if header is None:
        return None
    height, width, orientation, chroma_detail = header
    eighths = jpeg.scale_for(min(height, width), KEPT_DETAIL * chroma_detail * short_side)
    try:
        pixels = jpeg.decode_reduced(data, header, eighths, chans, keep=True)
    except ValueError:  # simplejpeg also refuses harmless damage
        return None
    return _Whole(pixels, height * eighths / 8, width * eighths / 8, orientation)


def image_size(source: bytes | NDArray[Any], chans: int = 3, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Return (H, W) of the upright image, from the header where the format allows. Raises UnreadableImage."""
    with _readable():
        if isinstance(source, bytes) and source.startswith(jpeg.MAGIC):
            header = jpeg.read_header(source, max_pixels)
            if header is not None:
                sides = (header.height, header.width)
                return sides if header.orientation < 5 else (sides[1], sides[0])
        if isinstance(source, bytes) and not source.startswith((NPY_MAGIC, *tiff.MAGICS)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with Image.open(io.BytesIO(source), formats=_formats()) as opened:
                    check_pixels(opened.height, opened.width, max_pixels)
                    sides = (opened.height, opened.width)
                    return sides if jpeg.exif_orientation(opened) < 5 else (sides[1], sides[0])
        pixels = _decode_part(source, chans, max_pixels)
        return pixels.shape[0], pixels.shape[1]


def decode(source: bytes | NDArray[Any], chans: int = 3, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decode a whole image at its own size: (H, W, chans), see `crop_and_resize`. Raises UnreadableImage."""
    with _readable():
        return _decode_part(source, chans, max_pixels)


@contextmanager
def _readable() -> Iterator[None]:
    """Raise any exception of the block as UnreadableImage; also raise it if the block takes too long."""
    began = time.thread_time()
    try:
        yield
    except UnreadableImage:
        raise
    except Exception as error:  # decoders raise anything about a damaged file
        raise UnreadableImage(_reason(error)) from error
    if time.thread_time() - began > MAX_SECONDS:
        raise UnreadableImage(f"it takes more than {MAX_SECONDS:g} s to decode")


def _decode_part(
    source: bytes | NDArray[Any], chans: int, max_pixels: int, choose_box: BoxChooser | None = None
) -> Pixels:
    """Decode the whole image, or the chosen box of it, upright: (H, W, chans)."""
    if isinstance(source, np.ndarray):
        pixels = to_pixels(channels_last(source, chans))
    elif source.startswith(NPY_MAGIC):
        array = read_npy(source)
        check_pixels(array.size if array.ndim == 2 else array.size // chans, 1, max_pixels)
        pixels = to_pixels(channels_last(array, chans))
    elif source.startswith(tiff.MAGICS):
        read = tiff.read_tiff(source, chans, max_pixels)
        if read is None:
            try:
                return _open_any(source, chans, max_pixels, choose_box)
            except UnidentifiedImageError:
                read = tiff.read_tiff(source, chans, max_pixels, ordinary=True)
        if read is None:
            raise UnreadableImage("a TIFF that neither Pillow nor tifffile reads")
        pixels = read
    else:
        return _open_any(source, chans, max_pixels, choose_box)
    return pixels if choose_box is None else cut(pixels, choose_box(pixels.shape[0], pixels.shape[1]))


def _crop_jpeg(
    data: bytes,
    header: jpeg.Header,
    choose_box: BoxChooser,
    size: tuple[int, int],
    chans: int,
    out: NDArray[np.uint8] | None,
    quality: Quality,
    max_pixels: int,
) -> Pixels:
    """Decode no more of a JPEG than the crop needs; cut out the crop, turn it upright and resize it."""
    height, width, orientation, _ = header
    turned = orientation >= 5
    chosen = choose_box(width, height) if turned else choose_box(height, width)
    box = stored_box(chosen, height, width, orientation)
    lying = (size[1], size[0]) if turned else size
    eighths = jpeg.eighths_for(box, lying, DETAIL[quality], header.chroma_detail)
    try:
        pixels = jpeg.decode_reduced(data, header, eighths, chans, keep=False)
    except ValueError:  # simplejpeg also refuses harmless damage: let Pillow decide
        part = _open_any(data, chans, max_pixels, lambda h, w: chosen)
        return RESIZE[quality](part, size, out)
    if eighths < 8:
        crop = SAMPLE[quality](pixels, box, eighths / 8, lying, out if orientation == 1 else None)
        return turn_upright(crop, orientation)
    part = cut(pixels, box)
    if orientation != 1:  # turned before resizing, since Pillow rounds after the rows
        part = np.ascontiguousarray(turn_upright(part, orientation))
    crop = RESIZE[quality](part, size, out)
    return crop.copy() if crop is part else crop  # the next image is decoded into the same memory


def stored_box(box: Box, height: int, width: int, orientation: int) -> Box:
    """Convert a box of the upright image to the stored image, which has ``height`` and ``width``."""
    top, left, h, w = box
    if orientation >= 5:
        height, width = width, height
    if orientation in (2, 3, 6, 7):
        left = width - left - w
    if orientation in (3, 4, 7, 8):
        top = height - top - h
    return Box(left, top, w, h) if orientation >= 5 else Box(top, left, h, w)


def _open_any(data: bytes, chans: int, max_pixels: int, choose_box: BoxChooser | None) -> Pixels:
    """Decode the first frame with Pillow, upright, 8 bits; RGB and grey images are put on white."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data), formats=_formats()) as opened:
            check_pixels(opened.height, opened.width, max_pixels)
            if data.startswith(jpeg.MAGIC):
                jpeg.check_scans(data, opened.height * opened.width, max_pixels)
            opened.load()  # also turns a TIFF upright
            image: Image.Image = opened
            orientation = jpeg.exif_orientation(image)
            if chans in RGB_OR_GREY:
                image = _with_key_painted(image, data)
                pixels = _to_eight_bits(_part_of(image, orientation, choose_box), image, chans)
            else:
                pixels = np.asarray(_stored_channels(_part_of(image, orientation, choose_box), chans))
    return turn_upright(as_chans(pixels), orientation)


@cache
def _formats() -> tuple[str, ...]:
    """Return the accepted formats that this Pillow was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _part_of(image: Image.Image, orientation: int, choose_box: BoxChooser | None) -> Image.Image:
    """Cut the chosen box out of the stored image."""
    if choose_box is None:
        return image
    height, width = image.height, image.width
    box = choose_box(width, height) if orientation >= 5 else choose_box(height, width)
    top, left, h, w = stored_box(box, height, width, orientation)
    if (top, left, h, w) == (0, 0, height, width):
        return image
    part = image.crop((left, top, left + w, top + h))
    part.info = image.info
    return part


def _to_eight_bits(part: Image.Image, image: Image.Image, chans: int) -> NDArray[np.uint8]:
    mode = "RGB" if chans == 3 else "L"
    if part.mode.startswith("I"):
        if part.mode == "I" and image.format != "PPM":
            raise UnreadableImage("32-bit integers, whose range is unknown: store it with 8 or 16 bits")
        values = np.asarray(part).astype(np.int64)
        grey = (values >> 8).astype(np.uint8)
        key = part.info.get("transparency")
        if isinstance(key, int):
            grey[values == key] = 255
        return np.asarray(Image.fromarray(grey).convert(mode))
    if part.mode == "F":
        raise UnreadableImage("floating-point pixels of unknown range: store it with 8 or 16 bits")
    if part.has_transparency_data:
        layer = part.convert("RGBA")
        if image.format in ("BMP", "DIB") and image.getchannel("A").getextrema() == (0, 0):
            return np.asarray(layer.convert("RGB").convert(mode))  # the alpha channel was never filled
        white = Image.new("RGB", layer.size, (255, 255, 255))
        white.paste(layer, mask=layer.getchannel("A"))
        return np.asarray(white.convert(mode))
    return np.asarray(part.convert(mode))


def _with_key_painted(image: Image.Image, data: bytes) -> Image.Image:
    """Paint a PNG's transparent colour white if Pillow does not find it; return other images unchanged."""
    key = image.info.get("transparency")
    if image.format != "PNG" or key is None:
        return image
    depth, colour = data[24], data[25]
    if colour == 0 and depth in (2, 4):
        pixels = np.array(image.convert("L"))
        pixels[pixels == key * 255 // (2**depth - 1)] = 255
    elif colour == 2 and depth == 16:  # Pillow keeps the first 8 bits only
        as_stored = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
        bgra = cv2.imdecode(np.frombuffer(data, np.uint8), as_stored)
        if bgra is None or bgra.dtype != np.uint16 or bgra.shape[2:] != (4,):
            raise UnreadableImage("a damaged PNG")
        pixels = (bgra[..., 2::-1].astype(np.uint16) >> 8).astype(np.uint8)
        pixels[bgra[..., 3] == 0] = 255
    else:
        return image
    painted = Image.fromarray(pixels)
    painted.format = image.format
    return painted


def _stored_channels(image: Image.Image, chans: int) -> Image.Image:
    """Return the image in its own channels, such as RGBA or CMYK for 4; palettes are expanded."""
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    count = len(image.getbands())
    if count != chans:
        raise UnreadableImage(f"{channels_needed(chans)}, the image has {count} ({image.mode})")
    return image


def _reason(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image in a format that Pillow reads"  # or in one outside FORMATS
    if isinstance(error, Image.DecompressionBombError):
        return "refused as a decompression bomb"
    if isinstance(error, EXPECTED_ERRORS):
        return first_line(error)
    return with_class(error)
