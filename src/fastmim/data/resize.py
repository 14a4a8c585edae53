"""Crops and their resizing: which interpolation serves which ratio, also of boxes between pixels."""

import math
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from fastmim.data.bands import Pixels, UnreadableImage

CV_CHANNELS = 4  # the most that each way of cv2.resize takes
# Pixels a side for one of the result, up to which each way is nearest to Pillow's antialiased bicubic on
# photos: cubic 45 dB or more; linear 40 or more, in a fifth of the time of area, which keeps 43 beyond.
MOST_CUBIC, MOST_LINEAR = 1.15, 1.5
MOST_SAMPLED = 2.0  # the same for boxes between pixels: rounding them would cost more than aliasing does


class Box(NamedTuple):
    """A crop, in pixels of the upright image."""

    top: int
    left: int
    height: int
    width: int


def cut(pixels: NDArray[Any], box: Box) -> NDArray[Any]:
    """A view of the box."""
    return pixels[box.top : box.top + box.height, box.left : box.left + box.width]


def as_chans(pixels: NDArray[Any]) -> NDArray[Any]:
    """(H, W) or (H, W, C) -> (H, W, C)."""
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def resize(pixels: Pixels, size: tuple[int, int], out: NDArray[np.uint8] | None = None) -> Pixels:
    """(H, W, C) -> (*size, C), in ``out`` where possible. Raises UnreadableImage of one without pixels."""
    height, width, chans = pixels.shape
    if not height or not width:
        raise UnreadableImage("the image has no pixels")
    if (height, width) == size:
        return pixels
    ratio = height / size[0], width / size[1]
    if max(ratio) <= MOST_CUBIC:
        way = cv2.INTER_CUBIC
    elif max(ratio) <= MOST_LINEAR or min(ratio) < 1:
        way = cv2.INTER_LINEAR
    else:
        way = cv2.INTER_AREA
    shape = (size[1], size[0])
    if chans <= CV_CHANNELS:
        place = out if pixels.dtype == np.uint8 else None
        return as_chans(cv2.resize(pixels, shape, dst=place, interpolation=way))
    parts = [
        as_chans(cv2.resize(part, shape, interpolation=way))
        for part in np.split(pixels, range(CV_CHANNELS, chans, CV_CHANNELS), axis=2)
    ]
    return np.concatenate(parts, axis=2)


def sample(
    pixels: Pixels, box: Box, scale: float, size: tuple[int, int], out: NDArray[np.uint8] | None = None
) -> Pixels:
    """Resize a box of the image that ``pixels`` are, reduced by ``scale``: its edges lie between them."""
    ratio = box.height * scale / size[0], box.width * scale / size[1]
    if max(ratio) > MOST_SAMPLED:
        top, left = math.floor(box.top * scale), math.floor(box.left * scale)
        bottom, right = round((box.top + box.height) * scale), round((box.left + box.width) * scale)
        return resize(cut(pixels, Box(top, left, max(bottom - top, 1), max(right - left, 1))), size, out)
    down, across = box.top * scale + ratio[0] / 2 - 0.5, box.left * scale + ratio[1] / 2 - 0.5
    return as_chans(
        cv2.warpAffine(
            pixels,
            np.array([[ratio[1], 0, across], [0, ratio[0], down]]),
            (size[1], size[0]),
            dst=out,
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
    )
