"""JPEGs at a reduced size: libjpeg-turbo leaves out what a crop does not need."""

import io
import threading
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from fastmim.data.bands import ORIENTATION_TAG, check_pixels
from fastmim.data.resize import Box

MAGIC = b"\xff\xd8\xff"
APP1, START_OF_SCAN = 0xE1, 0xDA  # markers
SCALES = (1, 2, 4, 8)  # eighths that libjpeg-turbo has fast paths for; the others take longer than 8
LEAST_DETAIL = 0.6  # pixels a side that are decoded for one of a crop: 34 dB; 1 gives 36 in 6 % more time
SCRATCH = 2**21  # bytes; a decode that fits is spared fresh memory, which took a fifth of a small one's time


class Header(NamedTuple):
    """What decoding needs to know of a file."""

    height: int  # as it is stored
    width: int
    orientation: int  # EXIF's, 1..8


def read_header(data: bytes) -> Header | None:
    """None where only Pillow may understand the file, such as CMYK. Raises UnreadableImage of a giant."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if colorspace not in ("YCbCr", "RGB", "Gray"):
        return None
    check_pixels(height, width)
    return Header(height, width, _orientation(data))


def eighths_for(box: Box, size: tuple[int, int]) -> int:
    """The scale, in eighths, at which a crop has the detail that ``size`` needs."""
    tall, wide = min(box.height, size[0]), min(box.width, size[1])
    return max(scale_for(box.height, LEAST_DETAIL * tall), scale_for(box.width, LEAST_DETAIL * wide))


def scale_for(side: int, needed: float) -> int:
    """The smallest scale, in eighths, at which ``side`` has the pixels that are needed."""
    for eighths in SCALES:
        if side * eighths >= 8 * needed:
            return eighths
    return 8


def decode_reduced(data: bytes, header: Header, eighths: int, chans: int, keep: bool) -> NDArray[np.uint8]:
    """(ceil(H * eighths / 8), ceil(W * eighths / 8), chans), not turned.

    Args:
        keep: whether the result shall outlive the next call of this thread.

    Raises:
        ValueError: the file is damaged, perhaps in a way that Pillow puts up with.
    """
    height, width = -(-header.height * eighths // 8), -(-header.width * eighths // 8)
    small = height * width * chans <= SCRATCH
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
        data,
        "RGB" if chans == 3 else "GRAY",
        min_height=height,
        min_width=width,
        buffer=_scratch() if small and not keep else None,
    )
    return pixels


def stored_box(box: Box, header: Header) -> Box:
    """A box of the upright image, in the image as it is stored."""
    top, left, h, w = box
    height, width, orientation = header
    if orientation >= 5:
        height, width = width, height
    if orientation in (2, 3, 6, 7):
        left = width - left - w
    if orientation in (3, 4, 7, 8):
        top = height - top - h
    return Box(left, top, w, h) if orientation >= 5 else Box(top, left, h, w)


_local = threading.local()


def _scratch() -> NDArray[np.uint8]:
    """Memory of this thread that is overwritten by each decode."""
    if not hasattr(_local, "scratch"):
        _local.scratch = np.empty(SCRATCH, np.uint8)
    scratch: NDArray[np.uint8] = _local.scratch
    return scratch


def _has_exif(data: bytes) -> bool:
    """Whether one of the segments before the pixels is Exif's; found without reading all of them."""
    place = 2
    while data[place : place + 1] == b"\xff" and len(data) > place + 4:
        marker = data[place + 1]
        if marker == APP1 and data[place + 4 : place + 9] == b"Exif\0":
            return True
        if marker == START_OF_SCAN:
            return False
        place += 2 + (data[place + 2] << 8 | data[place + 3])
    return data.find(b"Exif\0", 0, 65536) >= 0  # something unusual


def _orientation(data: bytes) -> int:
    """EXIF orientation of a JPEG; 1 (upright) where there is none."""
    if not _has_exif(data):
        return 1
    try:
        with Image.open(io.BytesIO(data)) as image:
            value = image.getexif().get(ORIENTATION_TAG, 1)
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError, Image.DecompressionBombError):
        return 1
    return value if value in range(1, 9) else 1
