"""JPEGs at a reduced size: libjpeg-turbo leaves out what a crop does not need."""

import io
import threading
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from fastmim.data.decode.pixels import ORIENTATION_TAG, UnreadableImage, check_pixels
from fastmim.data.decode.resize import Box

MAGIC = b"\xff\xd8\xff"
APP1, START_OF_SCAN, END_OF_IMAGE = 0xE1, 0xDA, 0xD9  # markers
# Start-of-frame markers: baseline, extended, progressive. Of lossless frames (0xC3, 0xCB) libjpeg-turbo
# writes every pixel whatever scale is asked for, past the end of the buffer: Pillow reads those, unscaled.
SCALABLE = (0xC0, 0xC1, 0xC2)
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD8)})
SCANS_A_PIXEL = 12  # of the largest image: a progressive file has about 10 scans, each over all pixels
SCALES = (1, 2, 4, 8)  # eighths that libjpeg-turbo has fast paths for; the others take longer than 8
# More pixels that are decoded where colours have half the columns but all rows: at a reduced scale
# libjpeg-turbo leaves some of those behind. Rarer samplings are Pillow's to read.
CHROMA_DETAIL = {"444": 1, "420": 1, "Gray": 1, "422": 2}
SCRATCH = 2**21  # bytes; a decode that fits is spared fresh memory, which took a fifth of a small one's time


class Header(NamedTuple):
    """What decoding needs to know of a file."""

    height: int  # as it is stored
    width: int
    orientation: int  # EXIF's or XMP's, 1..8
    chroma_detail: int  # see CHROMA_DETAIL


class _Segments(NamedTuple):
    """What stands in front of a file's pixels."""

    frame: int
    """The marker of its frame."""
    precision: int
    height: int
    width: int
    components: int
    has_orientation: bool
    """EXIF or XMP is there, which may hold one."""
    whole_scan: bool
    """The first scan holds all components."""


def read_header(data: bytes, max_pixels: int) -> Header | None:
    """None where only Pillow may understand the file, such as CMYK or a lossless one.

    Raises UnreadableImage of a giant, or of one whose scans would take minutes.
    """
    segments = _segments(data)
    if segments is None:
        return None
    check_pixels(segments.height, segments.width, max_pixels)
    check_scans(data, segments.height * segments.width, max_pixels, segments)
    if segments.frame not in SCALABLE or segments.precision != 8 or segments.components not in (1, 3):
        return None
    try:
        height, width, colorspace, sampling = simplejpeg.decode_jpeg_header(data)
    except Exception:  # a KeyError, too: of 4:4:1
        return None
    if colorspace not in ("YCbCr", "RGB", "Gray") or (height, width) != (segments.height, segments.width):
        return None
    detail = CHROMA_DETAIL.get(sampling)
    if detail is None:
        return None
    return Header(height, width, orientation_of(data) if segments.has_orientation else 1, detail)


def check_scans(data: bytes, pixels: int, max_pixels: int, segments: _Segments | None = None) -> None:
    """Raises UnreadableImage of a file with so many scans that decoding it would take minutes."""
    if segments is not None and segments.whole_scan and segments.frame != 0xC2:
        return
    scans = data.count(bytes([0xFF, START_OF_SCAN]))
    if scans * pixels > SCANS_A_PIXEL * max_pixels:
        raise UnreadableImage(f"{scans} scans over {pixels:,} pixels: refused as a decompression bomb")


def eighths_for(box: Box, size: tuple[int, int], detail: float, chroma_detail: int) -> int:
    """The scale, in eighths, at which a crop has ``detail`` pixels a side for each of ``size``."""
    if detail < 1:  # as many as there are will do
        size = min(box.height, size[0]), min(box.width, size[1])
    else:
        detail *= chroma_detail
    return max(scale_for(box.height, detail * size[0]), scale_for(box.width, detail * size[1]))


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


_local = threading.local()


def _scratch() -> NDArray[np.uint8]:
    """Memory of this thread that is overwritten by each decode."""
    if not hasattr(_local, "scratch"):
        _local.scratch = np.empty(SCRATCH, np.uint8)
    scratch: NDArray[np.uint8] = _local.scratch
    return scratch


def _segments(data: bytes) -> _Segments | None:
    """Read the segments up to the pixels; None where anything about them is unusual."""
    place, has_orientation, frame = 2, False, None
    while data[place : place + 1] == b"\xff" and len(data) > place + 9:
        marker = data[place + 1]
        if marker == 0xFF:  # fill bytes
            place += 1
            continue
        if marker in WITHOUT_LENGTH:
            place += 2
            continue
        if marker == START_OF_SCAN:
            return frame and _Segments(*frame, has_orientation, data[place + 4] == frame[4])
        if marker == END_OF_IMAGE:
            return None
        length = data[place + 2] << 8 | data[place + 3]
        if marker == APP1 and data[place + 4 : place + 9] in (b"Exif\0", b"http:"):
            has_orientation = True
        if marker in FRAMES:
            if frame is not None or length < 8:
                return None
            precision, high, low, wide, narrow, components = data[place + 4 : place + 10]
            frame = (marker, precision, high << 8 | low, wide << 8 | narrow, components)
        place += 2 + length
    return None


def orientation_of(data: bytes) -> int:
    """Orientation that EXIF, or else XMP, says; 1 (upright) where neither does."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            return exif_orientation(image)
    except Exception:  # the pixels may be whole
        return 1


def exif_orientation(image: Image.Image) -> int:
    """As `orientation_of`, of an opened image in any format; damaged metadata count as none."""
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:
        return 1
    return value if value in range(1, 9) else 1
