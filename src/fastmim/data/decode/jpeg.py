"""Decode JPEGs at a reduced size: libjpeg-turbo skips the detail that a crop does not need."""

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
# Start-of-frame markers: baseline, extended, progressive. For lossless frames (0xC3, 0xCB) libjpeg-turbo
# ignores the scale and writes every pixel, past the end of the buffer: Pillow reads those, unscaled.
SCALABLE = (0xC0, 0xC1, 0xC2)
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD8)})
SCANS_A_PIXEL = 12  # limit for the largest image; a progressive file has about 10 scans of all pixels
SCALES = (1, 2, 4, 8)  # eighths for which libjpeg-turbo has fast paths; other scales take longer than 8
# Factor of additional pixels to decode, by chroma subsampling. If colours have half the columns but all rows,
# libjpeg-turbo drops some of them at a reduced scale. Pillow reads files with rarer subsamplings.
CHROMA_DETAIL = {"444": 1, "420": 1, "Gray": 1, "422": 2}
SCRATCH = 2**21  # bytes; decodes that fit reuse one buffer: allocation took a fifth of a small one's time


class Header(NamedTuple):
    """Properties of a file that decoding needs."""

    height: int  # of the stored image
    width: int
    orientation: int  # EXIF's or XMP's, 1..8
    chroma_detail: int  # see CHROMA_DETAIL


class _Segments(NamedTuple):
    """Content of the segments in front of a file's pixels."""

    frame: int
    """Marker of the frame."""
    precision: int
    height: int
    width: int
    components: int
    has_orientation: bool
    """Whether there is EXIF or XMP, which may hold an orientation."""
    whole_scan: bool
    """Whether the first scan holds all components."""


def read_header(data: bytes, max_pixels: int) -> Header | None:
    """Read the header of a JPEG; None if only Pillow may understand the file, such as a CMYK or lossless one.

    Raises UnreadableImage for a giant image, or for one whose scans would take minutes.
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
    except Exception:  # also a KeyError, for 4:4:1
        return None
    if colorspace not in ("YCbCr", "RGB", "Gray") or (height, width) != (segments.height, segments.width):
        return None
    detail = CHROMA_DETAIL.get(sampling)
    if detail is None:
        return None
    return Header(height, width, orientation_of(data) if segments.has_orientation else 1, detail)


def check_scans(data: bytes, pixels: int, max_pixels: int, segments: _Segments | None = None) -> None:
    """Raise UnreadableImage for a file with so many scans that decoding it would take minutes."""
    if segments is not None and segments.whole_scan and segments.frame != 0xC2:
        return
    scans = data.count(bytes([0xFF, START_OF_SCAN]))
    if scans * pixels > SCANS_A_PIXEL * max_pixels:
        raise UnreadableImage(f"{scans} scans over {pixels:,} pixels: refused as a decompression bomb")


def eighths_for(box: Box, size: tuple[int, int], detail: float, chroma_detail: int) -> int:
    """Return the scale, in eighths, at which a crop has ``detail`` pixels per side for one of ``size``."""
    if detail < 1:  # an enlarged crop needs no more than its own pixels
        size = min(box.height, size[0]), min(box.width, size[1])
    else:
        detail *= chroma_detail
    return max(scale_for(box.height, detail * size[0]), scale_for(box.width, detail * size[1]))


def scale_for(side: int, needed: float) -> int:
    """Return the smallest scale, in eighths, at which ``side`` has ``needed`` pixels; at most 8."""
    for eighths in SCALES:
        if side * eighths >= 8 * needed:
            return eighths
    return 8


def decode_reduced(data: bytes, header: Header, eighths: int, chans: int, keep: bool) -> NDArray[np.uint8]:
    """Decode at a reduced scale: (ceil(H * eighths / 8), ceil(W * eighths / 8), chans), not turned.

    Args:
        keep: return an array that remains valid after the next call in this thread.

    Raises:
        ValueError: the file is damaged, possibly in a way that Pillow tolerates.
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
    """Return this thread's buffer, which each decode overwrites."""
    if not hasattr(_local, "scratch"):
        _local.scratch = np.empty(SCRATCH, np.uint8)
    scratch: NDArray[np.uint8] = _local.scratch
    return scratch


def _segments(data: bytes) -> _Segments | None:
    """Read the segments up to the pixels; None if anything about them is unusual."""
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
    """Return the orientation stated by EXIF, or else by XMP; 1 (upright) if neither states any."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            return exif_orientation(image)
    except Exception:  # the pixels may be intact
        return 1


def exif_orientation(image: Image.Image) -> int:
    """Return the orientation of an opened image in any format; damaged metadata count as none."""
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:
        return 1
    return value if value in range(1, 9) else 1
