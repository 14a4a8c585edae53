"""Crop and resize images by Pillow's antialiased bicubic interpolation, or by faster approximations."""

import math
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from fastmim.data.decode.pixels import Pixels, UnreadableImage

CV_CHANNELS = 4  # the most that every interpolation of cv2.resize supports
# For fast resizing: pixels per side for one pixel of the result, up to which cubic and linear interpolation
# are used instead of area averages.
MOST_CUBIC, MOST_LINEAR = 1.15, 1.5
MOST_SAMPLED = 2.0  # the same for boxes with edges between pixels: rounding costs more than aliasing


class Box(NamedTuple):
    """A crop, in pixels of the upright image."""

    top: int
    left: int
    height: int
    width: int


def cut(pixels: NDArray[Any], box: Box) -> NDArray[Any]:
    """Return a view of the box."""
    return pixels[box.top : box.top + box.height, box.left : box.left + box.width]


def as_chans(pixels: NDArray[Any]) -> NDArray[Any]:
    """Add the channel axis if it is missing: (H, W) or (H, W, C) -> (H, W, C)."""
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def resize(pixels: Pixels, size: tuple[int, int], out: NDArray[np.uint8] | None = None) -> Pixels:
    """Resize by antialiased bicubic interpolation: (H, W, C) -> (*size, C), in ``out`` if possible.

    PyTorch's kernel differs from Pillow's by rounding only (60 dB) and takes a sixth of its time. Raises
    UnreadableImage for an image without pixels.
    """
    height, width, _ = pixels.shape
    if not height or not width:
        raise UnreadableImage("the image has no pixels")
    if (height, width) == size:
        return pixels
    source = torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy())
    images_1CHW = source.permute(2, 0, 1)[None]
    resized = F.interpolate(images_1CHW, size, mode="bicubic", antialias=True, align_corners=False)
    return _channels_last(resized[0].numpy(), out)


def _channels_last(planes_CHW: Pixels, out: NDArray[np.uint8] | None) -> Pixels:
    """Reorder (C, H, W) to (H, W, C), in ``out`` if possible; OpenCV takes a fifteenth of NumPy's time."""
    place = out if planes_CHW.dtype == np.uint8 else None
    if 1 < len(planes_CHW) <= CV_CHANNELS:
        merged: Pixels = cv2.merge(list(planes_CHW), dst=place)  # type: ignore[assignment]
        return merged
    result = np.moveaxis(planes_CHW, 0, -1)
    if place is None:
        return np.ascontiguousarray(result)
    place[...] = result
    return place


def resize_exact(pixels: Pixels, size: tuple[int, int], out: NDArray[np.uint8] | None = None) -> Pixels:
    """Resize like `resize`, but 8-bit images by Pillow itself."""
    height, width, _ = pixels.shape
    if pixels.dtype != np.uint8 or not pixels.size or (height, width) == size:
        return resize(pixels, size, out)
    return sample(pixels.astype(np.uint8, copy=False), Box(0, 0, height, width), 1, size)


def sample(
    pixels: NDArray[np.uint8],
    box: Box,
    scale: float,
    size: tuple[int, int],
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Resize a box of an image, given as ``pixels`` reduced by ``scale``; edges may lie between pixels."""
    height, width, chans = pixels.shape
    bottom, right = min((box.top + box.height) * scale, height), min((box.left + box.width) * scale, width)
    top, left = math.floor(box.top * scale), math.floor(box.left * scale)
    part = np.ascontiguousarray(pixels[top : math.ceil(bottom), left : math.ceil(right)])  # no pixels outside
    edges = (box.left * scale - left, box.top * scale - top, right - left, bottom - top)
    pictures = [part] if chans == 3 else [part[..., channel] for channel in range(chans)]
    resized = [
        np.asarray(Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.BICUBIC, edges))
        for picture in pictures
    ]
    return resized[0] if chans == 3 else np.stack(resized, axis=-1)


def resize_fast(pixels: Pixels, size: tuple[int, int], out: NDArray[np.uint8] | None = None) -> Pixels:
    """Resize like `resize`, but by the fastest interpolation that is close: 40 to 45 dB on photos."""
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
    if chans > CV_CHANNELS:
        return resize(pixels, size, out)
    place = out if pixels.dtype == np.uint8 else None
    return as_chans(cv2.resize(pixels, (size[1], size[0]), dst=place, interpolation=way))


def sample_fast(
    pixels: NDArray[np.uint8],
    box: Box,
    scale: float,
    size: tuple[int, int],
    out: NDArray[np.uint8] | None = None,
) -> Pixels:
    """Resize a box like `sample`, but by faster interpolation."""
    ratio = box.height * scale / size[0], box.width * scale / size[1]
    if max(ratio) > MOST_SAMPLED:
        top, left = math.floor(box.top * scale), math.floor(box.left * scale)
        bottom, right = round((box.top + box.height) * scale), round((box.left + box.width) * scale)
        return resize_fast(cut(pixels, Box(top, left, max(bottom - top, 1), max(right - left, 1))), size, out)
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
