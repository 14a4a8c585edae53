"""Images of any number of channels: arrays, NumPy files and TIFFs of many, deep or floating-point bands."""

import io
import logging
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

Pixels = NDArray[np.uint8 | np.float32]  # uint8 stands for 0..255, float32 for 0..1

NPY_MAGIC = b"\x93NUMPY"
TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two are BigTIFF
MAX_PIXELS = 178_956_970  # the limit at which Pillow refuses, too: half a gigabyte of RGB
MOST_VALUES = 3 * MAX_PIXELS  # of images of many bands
ORIENTATION_TAG = 0x0112


class UnreadableImage(Exception):
    """An image cannot be used; the message is the reason."""


def channels_last(array: NDArray[Any], chans: int) -> NDArray[Any]:
    """An array of 2 axes (one channel) or 3 -> (H, W, chans) of integers, booleans or finite float32.

    Of 3 axes, the one of length ``chans`` holds the channels; if several have it, the last of them.

    Raises:
        UnreadableImage: no such axis, values that are no real numbers, or not finite ones.
    """
    if array.ndim == 2:
        array = array[:, :, None]
        fits = chans == 1
    else:
        if array.ndim != 3:
            raise UnreadableImage(f"an image has 2 or 3 axes, the array has {array.ndim} ({_shape(array)})")
        axes = [axis for axis in range(3) if array.shape[axis] == chans]
        fits = bool(axes)
        if fits and axes[-1] != 2:
            array = np.moveaxis(array, axes[-1], -1)
    if not fits:
        raise UnreadableImage(f"{channels_needed(chans)}, the array is {_shape(array)}")
    if not array.size:
        raise UnreadableImage("the image has no pixels")
    if array.dtype.kind not in "buif":
        raise UnreadableImage(f"values of type {array.dtype}: integers or floating-point numbers are needed")
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            array = array.astype(np.float32, copy=False)
        if not np.isfinite(array).all():
            raise UnreadableImage("some values are not finite float32 numbers (NaN, infinite or too large)")
    return array


def to_pixels(array: NDArray[Any]) -> Pixels:
    """uint8 as it is, else float32: integers divided by the largest of their type, others as they are."""
    if array.dtype == np.uint8:
        return array
    values = array.astype(np.float32, copy=False)
    return values / np.float32(np.iinfo(array.dtype).max) if array.dtype.kind in "ui" else values


def to_float(pixels: Pixels) -> NDArray[np.float32]:
    """float32 with uint8's 0..255 scaled to 0..1, as `loader.to_images` does on the device."""
    values = pixels.astype(np.float32, copy=False)
    return values / np.float32(255) if pixels.dtype == np.uint8 else values


def check_pixels(height: int, width: int) -> None:
    """Raises UnreadableImage of an image that is absurdly large."""
    if height * width > MAX_PIXELS:
        raise UnreadableImage(f"{width}x{height} pixels: refused as a decompression bomb")


def channels_needed(chans: int) -> str:
    """The first half of the reason why an image's channels do not fit."""
    return f"{chans} channel{' is' if chans == 1 else 's are'} needed"


def read_npy(data: bytes) -> NDArray[Any]:
    """The array of a .npy file. Raises ValueError or EOFError; pickled objects are refused."""
    array: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    return array


def is_ordinary_tiff(data: bytes, chans: int) -> bool:
    """Whether Pillow makes RGB (``chans`` 3) or grey (1) of a TIFF, or says best why it cannot.

    That is: 8-bit images, of several pages the first; single deep bands for RGB, which become 8 bits.
    """
    try:
        with _open_tiff(data) as tiff:
            axes, shape, dtype = tiff.series[0].axes, tiff.series[0].shape, tiff.series[0].dtype
    except Exception:
        return True
    samples = shape[axes.index("S")] if "S" in axes else 1
    if len(shape) == 3 and samples == 1 and chans > 1 and chans in shape:  # a page a band
        return False
    if dtype in (np.uint8, np.bool_):
        return samples <= 4
    return chans == 3 and samples == 1


def read_tiff(data: bytes, chans: int) -> NDArray[Any]:
    """The bands of a TIFF's first image as they are stored, upright: (H, W, chans), see `channels_last`.

    Pages of one band and equal size are the bands of one image. Raises UnreadableImage.
    """
    try:
        with _open_tiff(data) as tiff:
            series = tiff.series[0]
            if series.size > MOST_VALUES:
                raise UnreadableImage(
                    f"{series.size} values ({'x'.join(map(str, series.shape))}): refused as a decompression "
                    f"bomb; {MOST_VALUES} are the most that are read, so cut it into tiles"
                )
            orientation = int(tiff.pages.first.tags.valueof(ORIENTATION_TAG, default=1))
            axes, array = series.axes, series.asarray(maxworkers=1)
    except UnreadableImage:
        raise
    except Exception as error:  # damaged files make the decoders raise whatever it is
        if isinstance(error, ImportError) or "imagecodecs" in str(error):
            reason = "its compression needs imagecodecs: pip install 'fastmim[multiband]'"
            raise UnreadableImage(reason) from error
        raise UnreadableImage(first_line(error)) from error
    if array.ndim == 3 and "S" in axes:
        array = np.moveaxis(array, axes.index("S"), -1)
        if array.shape[-1] != chans:  # no other axis can hold them
            raise UnreadableImage(f"{channels_needed(chans)}, the array is {_shape(array)}")
    return turn_upright(channels_last(array, chans), orientation)


def turn_upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Undo EXIF's (and TIFF's) orientation 1..8 of (H, W, C)."""
    if orientation not in range(2, 9):
        return pixels
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _open_tiff(data: bytes) -> tifffile.TiffFile:
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what is wrong with a file is our reason
    return tifffile.TiffFile(io.BytesIO(data))


def _shape(array: NDArray[Any]) -> str:
    return "x".join(str(length) for length in array.shape)
