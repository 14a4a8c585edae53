"""Pixel arrays: which arrays are images, the meaning of their values, and which images are refused."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8 | np.float32]  # uint8 stands for 0..255, float32 for 0..1

NPY_MAGIC = b"\x93NUMPY"
BYTES_A_PIXEL = 8  # limit per pixel of the largest image: bounds images of many or deep channels
NO_DATA = 1e30  # no measurement is as large; writers mark missing pixels with the largest float
ORIENTATION_TAG = 0x0112
RGB_OR_GREY = (1, 3)  # numbers of channels for which the value range is known by convention


class UnreadableImage(Exception):
    """An image that cannot be used; the message is the reason."""


def channels_last(array: NDArray[Any], chans: int) -> NDArray[Any]:
    """Convert an array of 2 axes (one channel) or 3 to (H, W, chans) of integers, booleans or finite float32.

    Of 3 axes, the one of length ``chans`` holds the channels; if several have this length, the last of them.

    Raises:
        UnreadableImage: there is no such axis, or the values are not real numbers, not finite, or integers
            of unknown range.
    """
    if array.ndim == 2:
        array = array[:, :, None]
        fits = chans == 1
    else:
        if array.ndim != 3:
            raise UnreadableImage(f"an image has 2 or 3 axes, the array has {array.ndim} ({shape_of(array)})")
        axes = [axis for axis in range(3) if array.shape[axis] == chans]
        fits = bool(axes)
        if fits and axes[-1] != 2:
            array = np.moveaxis(array, axes[-1], -1)
    if not fits:
        raise UnreadableImage(f"{channels_needed(chans)}, the array is {shape_of(array)}")
    if not array.size:
        raise UnreadableImage("the image has no pixels")
    if array.dtype.kind not in "buif":
        raise UnreadableImage(f"values of type {array.dtype}: integers or floating-point numbers are needed")
    if array.dtype.kind in "ui" and array.dtype.itemsize > 2 and chans in RGB_OR_GREY:
        raise UnreadableImage(
            f"integers of type {array.dtype}, whose range is unknown: store 0..255 as uint8, 0..65535 as "
            "uint16, or 0..1 as float32"
        )
    if array.dtype.kind == "f":
        array = finite(array)
    return array


def finite(array: NDArray[Any]) -> NDArray[np.float32]:
    """Convert floats to float32. Raises UnreadableImage unless all are finite measurements."""
    with np.errstate(over="ignore"):
        values: NDArray[np.float32] = array.astype(np.float32, copy=False)
    largest = float(np.abs(values).max(initial=0.0))
    if not np.isfinite(largest):
        raise UnreadableImage("some values are not finite float32 numbers (NaN, infinite or too large)")
    if largest >= NO_DATA:
        raise UnreadableImage(
            f"some values are as large as {largest:.2g}, as if they marked missing pixels: fill them first"
        )
    return values


def to_pixels(array: NDArray[Any]) -> Pixels:
    """Return uint8 unchanged and other types as float32, integers divided by the largest of their type."""
    if array.dtype == np.uint8:
        return array
    values = array.astype(np.float32, copy=False)
    return values / np.float32(np.iinfo(array.dtype).max) if array.dtype.kind in "ui" else values


def to_bytes(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Scale 0..1 to 0..255 and round; values outside 0..1 are clipped."""
    rounded: NDArray[np.uint8] = np.rint(255 * values.clip(0, 1)).astype(np.uint8)
    return rounded


def to_float(pixels: Pixels) -> NDArray[np.float32]:
    """Convert to float32, with uint8's 0..255 scaled to 0..1, as `dataset.to_images` does on the device."""
    values = pixels.astype(np.float32, copy=False)
    return values / np.float32(255) if pixels.dtype == np.uint8 else values


def check_pixels(height: int, width: int, max_pixels: int, nbytes: int = 0) -> None:
    """Raise UnreadableImage for an absurdly large image, in pixels or in ``nbytes``, its decoded size."""
    if height * width > max_pixels:
        raise UnreadableImage(
            f"{width}x{height} pixels, more than max-pixels = {max_pixels:,}: refused as a decompression bomb"
        )
    if nbytes > BYTES_A_PIXEL * max_pixels:
        raise UnreadableImage(
            f"{nbytes:,} bytes when it is decoded, more than {BYTES_A_PIXEL} times max-pixels = "
            f"{max_pixels:,}: refused as a decompression bomb; cut it into tiles"
        )


def channels_needed(chans: int) -> str:
    """Return the first half of the reason why an image's channels do not fit."""
    return f"{chans} channel{' is' if chans == 1 else 's are'} needed"


def read_npy(data: bytes) -> NDArray[Any]:
    """Return the array of a .npy file, a view of ``data``. Raises UnreadableImage, also for object arrays."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read_header = np.lib.format.read_array_header_2_0
    shape, column_major, dtype = read_header(file)
    if dtype.hasobject:
        raise UnreadableImage("Object arrays cannot be loaded when allow_pickle=False")
    count, start = 1, file.tell()
    for length in shape:
        count *= length
    if not dtype.itemsize or min(shape, default=1) < 0 or count * dtype.itemsize > len(data) - start:
        raise UnreadableImage(
            f"the header says {'x'.join(map(str, shape))} of {dtype}, the file is shorter: it is cut off"
        )
    array = np.frombuffer(data, dtype, count, start)
    return array.reshape(shape, order="F" if column_major else "C")


def turn_upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Undo the EXIF (or TIFF) orientation, 1..8, of an image (H, W, C)."""
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
    """Return the first line of an error's message, or the error's type if there is no message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def with_class(error: BaseException) -> str:
    """Return the type and the first line of an error, such as ``KeyError: 'palette'``."""
    return ": ".join(dict.fromkeys((type(error).__name__, first_line(error))))


def shape_of(array: NDArray[Any]) -> str:
    """Format the shape of an array, such as ``40x56x3``."""
    return "x".join(str(length) for length in array.shape)
