"""Read TIFFs with any number of bands, bits and pages, and convert their values to pixels.

Pillow (libtiff) reads ordinary TIFFs: 8 bits or fewer per sample, and a single page that counts. tifffile
reads the stored values of all others, which this module converts to pixels.
"""

import io
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from fastmim.data.decode.pixels import (
    ORIENTATION_TAG,
    RGB_OR_GREY,
    Pixels,
    UnreadableImage,
    channels_last,
    channels_needed,
    check_pixels,
    finite,
    first_line,
    shape_of,
    to_bytes,
    to_pixels,
    turn_upright,
)

MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two are BigTIFF
MAX_PAGES = 10_000
GDAL_NODATA_TAG = 42113
UINT, INT, FLOAT = 1, 2, 3  # sample formats
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, TRANSPARENCY_MASK, INKS, YCBCR = range(7)  # photometric
PACKBITS, WEBP = 32773, 50001  # compressions
ALPHA = (1, 2)  # extra samples: alpha with premultiplied colours, and without
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601-2, as in Pillow


@dataclass(frozen=True)
class _Form:
    """Format of the values, as stated by the first page."""

    bits: int
    """Bits of each sample; 0 if the samples differ."""
    kind: int
    """Sample format: UINT, INT or FLOAT."""
    samples: int
    photometric: int
    extra: tuple[int, ...]
    orientation: int
    pages: int
    """Pages of the same form that are the bands of one image; 1 if the first page is the image."""
    nodata: float | None


def read_tiff(data: bytes, chans: int, max_pixels: int, ordinary: bool = False) -> Pixels | None:
    """Read the image of a TIFF, upright: (H, W, chans), see `image.crop_and_resize`.

    Pages of one band and equal size are the bands of one image if their number is ``chans``. Raises
    UnreadableImage.

    Args:
        ordinary: also read TIFFs that Pillow should read, since Pillow does not know all compressions.

    Returns:
        The pixels; None if Pillow reads the TIFF correctly.
    """
    try:
        with _open(data) as tiff:
            form, array = _read(tiff, chans, max_pixels, ordinary)
    except UnreadableImage:
        raise
    except Exception as error:  # decoders raise any exception for a damaged file
        if isinstance(error, ImportError) or "imagecodecs" in str(error):
            reason = "its compression needs imagecodecs: pip install 'fastmim[multiband]'"
            raise UnreadableImage(reason) from error
        raise UnreadableImage(first_line(error)) from error
    if array is None:
        return None
    _check_nodata(array, form)
    return turn_upright(_to_channels(array, form, chans), form.orientation)


def _read(
    tiff: tifffile.TiffFile, chans: int, max_pixels: int, ordinary: bool
) -> tuple[_Form, NDArray[Any] | None]:
    """Return (form, array): (H, W), (H, W, samples) or (pages, H, W); None if Pillow reads the TIFF."""
    # Describe the values by the first page.
    page = tiff.pages.first
    check_pixels(page.imagelength, page.imagewidth, max_pixels)
    series = _series(tiff)
    pages = 1
    if series is not None and len(series.shape) == 3 and "S" not in series.axes and 1 < chans in series.shape:
        pages = chans
    bits = set(page.bitspersample) if isinstance(page.bitspersample, tuple) else {page.bitspersample}
    nodata = page.tags.valueof(GDAL_NODATA_TAG, default=None)
    form = _Form(
        bits=bits.pop() if len(bits) == 1 else 0,
        kind=int(page.sampleformat or UINT),
        samples=page.samplesperpixel,
        photometric=int(page.photometric),
        extra=tuple(int(sample) for sample in page.extrasamples or ()),
        orientation=int(page.tags.valueof(ORIENTATION_TAG, default=1)),
        pages=pages if int(page.photometric) in (WHITE_IS_ZERO, BLACK_IS_ZERO) else 1,
        nodata=_number(nodata),
    )
    # Leave ordinary TIFFs to Pillow, and refuse unknown sample formats.
    if not ordinary and _is_ordinary(form, chans) and _is_libtiffs(page):
        return form, None
    if not form.bits:
        raise UnreadableImage(f"samples of {page.bitspersample} bits: store all with as many")
    if form.kind not in (UINT, INT, FLOAT):
        raise UnreadableImage(f"samples of format {form.kind}: integers or floating-point numbers are needed")
    # Read the page or the series, and move the samples to the last axis.
    source = series if series is not None and form.samples == 1 and len(series.shape) > 2 else page
    if form.pages == 1 and chans in RGB_OR_GREY:
        source = page  # the first of several pages
    check_pixels(page.imagelength, page.imagewidth, max_pixels, source.nbytes)
    array = source.asarray(maxworkers=1)
    if source is page and array.ndim == 3 and page.planarconfig == 2:
        array = np.moveaxis(array, 0, -1)
    elif source is series and "S" in series.axes and array.ndim == 3:
        array = np.moveaxis(array, series.axes.index("S"), -1)
    # Expand the palette.
    if form.photometric == PALETTE and array.ndim == 2:
        if page.colormap is None:
            raise UnreadableImage("its palette is missing")
        array = (np.moveaxis(page.colormap[:, array], 0, -1) >> 8).astype(np.uint8)
        form = _Form(8, UINT, 3, RGB, (), form.orientation, 1, form.nodata)
    return form, array


def _series(tiff: tifffile.TiffFile) -> Any:
    """Return the first series; None for a single page of several samples.

    Raises UnreadableImage if there are more than `MAX_PAGES` pages.
    """
    page = tiff.pages.first
    single = not tiff.is_imagej and not tiff.is_ome and not tiff.is_shaped and not tiff.is_lsm
    if single and not _has_more_than(tiff, 1):
        return None if page.samplesperpixel > 1 else tiff.series[0]
    if _has_more_than(tiff, MAX_PAGES):
        raise UnreadableImage(f"more than {MAX_PAGES} pages: refused as a decompression bomb")
    return tiff.series[0]


def _has_more_than(tiff: tifffile.TiffFile, count: int) -> bool:
    try:
        tiff.pages.get(count)
    except IndexError:
        return False
    return True


def _is_libtiffs(page: Any) -> bool:
    """Return whether Pillow's libtiff knows the compression: not WebP, nor PackBits with a predictor."""
    return page.compression != WEBP and not (page.predictor > 1 and page.compression == PACKBITS)


def _is_ordinary(form: _Form, chans: int) -> bool:
    """Return whether Pillow reads it as RGB (``chans`` 3), grey (1) or bands, or best reports why not."""
    if form.pages > 1 or form.kind != UINT:
        return form.kind == FLOAT and form.samples == 1 and chans == 3 and form.pages == 1
    if form.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO, PALETTE) and form.samples == 1:
        return form.bits in (1, 2, 4, 8) and chans in RGB_OR_GREY
    if form.bits != 8 or form.samples > 4:
        return False
    if form.photometric in (BLACK_IS_ZERO, WHITE_IS_ZERO):  # several grey samples are bands
        two = form.samples == 2 and form.extra != (1,)  # Pillow has no premultiplied grey
        return two and chans in RGB_OR_GREY and form.photometric == BLACK_IS_ZERO
    return True


def _check_nodata(array: NDArray[Any], form: _Form) -> None:
    if form.nodata is not None and form.bits > 8:
        missing = np.isnan(array) if np.isnan(form.nodata) else array == form.nodata
        if missing.any():
            raise UnreadableImage(
                f"{missing.mean():.0%} of it is missing (GDAL_NODATA {form.nodata:g}): fill it first"
            )


def _to_channels(array: NDArray[Any], form: _Form, chans: int) -> Pixels:
    """Convert the stored array to (H, W, chans), not turned."""
    if chans not in RGB_OR_GREY or form.pages > 1 or _is_stack_of_bands(array, form, chans):
        return _bands(array, form, chans)
    if form.kind == INT or (form.kind == UINT and form.bits > 16):
        if form.kind == INT and form.bits <= 16 and array.ndim == 2 and chans == 1:
            return _bands(array, form, chans)
        kind = f"{'signed ' if form.kind == INT else ''}integers of {form.bits} bits"
        raise UnreadableImage(f"{kind}, whose range is unknown: store it with 8 or 16 bits, unsigned")
    values = _scaled(array, form)
    if array.ndim == 2:
        return _grey(values, form, chans)
    if array.ndim != 3:
        raise UnreadableImage(f"an image has 2 or 3 axes, the array has {array.ndim} ({shape_of(array)})")
    return _colours(values, form, chans)


def _is_stack_of_bands(array: NDArray[Any], form: _Form, chans: int) -> bool:
    """Return whether the samples are ``chans`` bands that are not declared as colours."""
    return array.ndim == 3 and form.photometric == BLACK_IS_ZERO and array.shape[-1] == chans


def _bands(array: NDArray[Any], form: _Form, chans: int) -> Pixels:
    if array.ndim == 3 and form.samples > 1 and array.shape[-1] != chans:  # no other axis can hold the bands
        raise UnreadableImage(f"{channels_needed(chans)}, the array is {shape_of(array)}")
    array = channels_last(array, chans)
    if form.kind == UINT and (form.bits not in (8, 16, 32, 64) or form.photometric == WHITE_IS_ZERO):
        values = _scaled(array, form)
        return to_bytes(values) if form.bits <= 8 else values
    return to_pixels(array)


def _scaled(array: NDArray[Any], form: _Form) -> NDArray[np.float32]:
    """Scale stored integers to 0..1; return floating-point numbers unscaled."""
    if form.kind == FLOAT:
        if form.photometric == WHITE_IS_ZERO:
            raise UnreadableImage("floating-point pixels of which 0 is white: store them with 0 as black")
        return finite(array)
    values = array.astype(np.float32) / np.float32(2**form.bits - 1)
    return np.float32(1) - values if form.photometric == WHITE_IS_ZERO else values


def _grey(values: NDArray[np.float32], form: _Form, chans: int) -> Pixels:
    """Convert one deep band to (H, W, chans); RGB is made of the 8 most significant bits."""
    if form.kind == FLOAT and chans == 3:
        raise UnreadableImage("floating-point pixels of unknown range: store it with 8 or 16 bits")
    if form.bits <= 8 or chans == 3:
        steps = 2 ** min(form.bits, 8) - 1  # the last 8 of 16 bits are dropped, as in Pillow
        grey = np.floor(values * np.float32(2**form.bits - 1) * 2.0 ** -max(form.bits - 8, 0) + 1e-3) * (
            255 / steps
        )
        return np.repeat(np.rint(grey).astype(np.uint8)[:, :, None], chans, axis=2)
    return values[:, :, None]


def _colours(values: NDArray[np.float32], form: _Form, chans: int) -> Pixels:
    """Put RGB, CMYK or grey samples, possibly with alpha, on white: (H, W, S) -> (H, W, chans)."""
    inks = {RGB: 3, INKS: 4, BLACK_IS_ZERO: 1, WHITE_IS_ZERO: 1}.get(form.photometric, 0)
    extra = form.extra or (0,) * (values.shape[-1] - inks)
    if not inks or values.shape[-1] != inks + len(extra) or (inks == 1 and not set(extra) & set(ALPHA)):
        if inks == 1:
            raise UnreadableImage(f"{channels_needed(chans)}, the array is {shape_of(values)}")
        raise UnreadableImage(
            f"{values.shape[-1]} samples of {form.bits} bits in photometric interpretation "
            f"{form.photometric}: store it as RGB or grey"
        )
    colours: NDArray[np.float32] = values[..., :inks]
    if form.photometric == INKS:
        colours = (1 - colours[..., :3]) * (1 - colours[..., 3:])
    for place, meaning in enumerate(extra, inks):
        if meaning in ALPHA:
            alpha = values[..., place : place + 1]
            colours = (colours if meaning == 1 else colours * alpha) + (1 - alpha)
            break
    if colours.shape[-1] == 3 and chans == 1:
        colours = (colours @ LUMA)[..., None]
    elif colours.shape[-1] == 1 and chans == 3:
        colours = np.repeat(colours, 3, axis=-1)
    if form.bits <= 8:
        return to_bytes(colours)
    return colours


def _number(text: Any) -> float | None:
    try:
        return None if text is None else float(str(text).strip("\0 "))
    except ValueError:
        return None


def _open(data: bytes) -> tifffile.TiffFile:
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # UnreadableImage reports the faults of a file
    return tifffile.TiffFile(io.BytesIO(data))
