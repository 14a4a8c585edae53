"""Read a mask file as class numbers: a grey or palette image of ids, or an image of colours."""

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastmim.data.decode.pixels import UnreadableImage, check_pixels, first_line
from fastmim.data.settings import MAX_PIXELS
from fastmim.system.size import Size

IGNORED = 255
"""Class number of pixels that count neither in the loss nor in the scores."""
MOST_CLASSES = 255  # class numbers are stored in 8 bits
FORMATS = ("PNG", "BMP", "TIFF", "GIF", "WEBP", "PPM")  # lossless ones: JPEG changes ids
ID_MODES = ("1", "L", "P", "I;16", "I;16B", "I")  # Pillow's modes of one channel of integers
COLOUR_MODES = ("RGB", "RGBA")
EXPECTED_ERRORS = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


@dataclass(frozen=True)
class MaskCode:
    """How the values of mask files are converted to class numbers 0 .. classes - 1 and `IGNORED`."""

    classes: int
    zero_is_unlabelled: bool = False
    """Value 0 is ignored and value v is class v - 1, as in ADE20K."""
    ignore_index: int | None = 255
    """Value of the file that is ignored; None: there is none."""
    colours: tuple[tuple[int, int, int], ...] = ()
    """Colour of each class; pixels of other colours are ignored. Empty: the files hold ids."""

    def class_numbers(self, values: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Convert ids (H, W) to class numbers, uint8.

        Raises:
            UnreadableImage: an id is that of no class.
        """
        numbers = values - 1 if self.zero_is_unlabelled else values
        ignored = values == 0 if self.zero_is_unlabelled else np.zeros(values.shape, bool)
        if self.ignore_index is not None:
            ignored |= values == self.ignore_index
        outside = ~ignored & ((numbers < 0) | (numbers >= self.classes))
        if outside.any():
            first = 1 if self.zero_is_unlabelled else 0
            raise UnreadableImage(
                f"its mask has the value {values[outside][0]}; the {self.classes} classes have the values "
                f"{first} to {first + self.classes - 1}"
            )
        return np.where(ignored, IGNORED, numbers).astype(np.uint8)

    def of_colours(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Convert colours (H, W, 3) to class numbers, uint8."""
        keys = pixels.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
        known = [(red << 16) + (green << 8) + blue for red, green, blue in self.colours]
        order = np.argsort(known)
        places = np.searchsorted(known, keys, sorter=order).clip(max=len(known) - 1)
        found = order[places]
        return np.where(np.array(known)[found] == keys, found, IGNORED).astype(np.uint8)


def read_mask(data: bytes, code: MaskCode, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Read a mask file as class numbers (H, W), uint8, with `IGNORED` for pixels without a class.

    A palette image is read as its indices, not as its colours.

    Raises:
        UnreadableImage: the file is not a mask, or has a value that is no class; the message is the reason.
    """
    values = read_ids(data, max_pixels)
    if values.ndim == 3:
        if not code.colours:
            raise UnreadableImage("its mask is a colour image: give the colours of the classes as --palette")
        return code.of_colours(values.astype(np.uint8))
    if code.colours:
        raise UnreadableImage("its mask holds ids, not the colours of --palette")
    return code.class_numbers(values)


def read_ids(data: bytes, max_pixels: int = MAX_PIXELS) -> NDArray[np.int64]:
    """Read a mask file as ids (H, W), or as colours (H, W, 3) if it is a colour image.

    Raises:
        UnreadableImage: the file is not an image with one channel of integers or three of bytes.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                check_pixels(image.height, image.width, max_pixels)
                if image.mode not in ID_MODES + COLOUR_MODES:
                    raise UnreadableImage(f"its mask has Pillow's mode {image.mode}, not ids or RGB colours")
                if image.mode in COLOUR_MODES:
                    return np.asarray(image.convert("RGB")).astype(np.int64)
                return np.asarray(image).astype(np.int64)
    except UnreadableImage:
        raise
    except EXPECTED_ERRORS as error:
        raise UnreadableImage(f"its mask cannot be read: {first_line(error)}") from error


def write_mask(numbers: NDArray[np.uint8], zero_is_unlabelled: bool = False) -> bytes:
    """Encode class numbers (H, W) as a grey PNG of ids, the inverse of `read_mask`."""
    values = np.where(numbers == IGNORED, 0, numbers + 1) if zero_is_unlabelled else numbers
    file = io.BytesIO()
    Image.fromarray(values.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def check_same_size(mask: NDArray[np.uint8], size: Size) -> None:
    """Raise UnreadableImage unless a mask has the size (H, W) of its image."""
    if mask.shape != size:
        raise UnreadableImage(
            f"its mask has {mask.shape[1]}x{mask.shape[0]} pixels, the image {size[1]}x{size[0]}"
        )


def count_values(masks: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return the distinct ids of several masks, sorted."""
    return np.unique(np.concatenate([np.unique(mask) for mask in masks]))
