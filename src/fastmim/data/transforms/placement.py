"""Scale, crop and flip an image together with its annotations."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from fastmim.data.decode.resize import Box
from fastmim.system.size import Size


@dataclass(frozen=True)
class Placement:
    """A box of an image, and the size that it has at the top left of a canvas; the rest is padding."""

    box: Box
    """In pixels of the upright image."""
    size: Size
    """(H, W) of the box on the canvas, in pixels."""
    flip: bool = False
    """Whether the resized box is mirrored, left to right."""

    def points(self, points_N2: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map points (x, y) from the image to the canvas; those outside the box stay outside it."""
        (top, left, height, width), (tall, wide) = self.box, self.size
        moved = (points_N2 - np.array([left, top])) * (np.array([wide, tall]) / np.array([width, height]))
        if self.flip:
            moved[:, 0] = wide - moved[:, 0]
        return np.asarray(moved, np.float32)

    def boxes(self, boxes_N4: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map boxes (x1, y1, x2, y2) from the image to the canvas, clipped to the part that is shown."""
        (top, left, height, width), (tall, wide) = self.box, self.size
        moved = (boxes_N4 - np.array([left, top, left, top])) * (
            np.array([wide, tall] * 2) / np.array([width, height] * 2)
        )
        moved = np.clip(moved, 0, np.array([wide, tall, wide, tall]))
        if self.flip:
            moved[:, [0, 2]] = wide - moved[:, [2, 0]]
        return np.asarray(moved, np.float32)

    def mask(self, mask_HW: NDArray[np.uint8], canvas: Size, fill: int) -> NDArray[np.uint8]:
        """Map a mask (H, W) to the canvas, by nearest neighbour; the padding has the value ``fill``."""
        placed = np.full(canvas, fill, np.uint8)
        part = mask_HW[
            self.box.top : self.box.top + self.box.height, self.box.left : self.box.left + self.box.width
        ]
        resized = cv2.resize(part, (self.size[1], self.size[0]), interpolation=cv2.INTER_NEAREST_EXACT)
        placed[: self.size[0], : self.size[1]] = np.fliplr(resized) if self.flip else resized
        return placed


def fitted(image: Size, short_side: float, long_side: float) -> float:
    """Return the factor that scales an image to ``short_side``, or less, so that ``long_side`` holds."""
    return min(short_side / min(image), long_side / max(image))


def whole(image: Size, scale: float) -> Placement:
    """Return the placement of a whole image, scaled, with at least one pixel a side."""
    height, width = (max(1, round(side * scale)) for side in image)
    return Placement(Box(0, 0, *image), (height, width))


def crop(image: Size, scale: float, canvas: Size, place: tuple[float, float], flip: bool) -> Placement:
    """Scale an image and crop what exceeds the canvas.

    Args:
        image: (H, W) of the upright image.
        scale: factor by which the image is scaled before it is cropped.
        canvas: (H, W) of the crop.
        place: position of the crop along the height and the width of what is cropped, 0 .. 1.
        flip: whether the crop is mirrored.
    """
    scaled = whole(image, scale).size
    size = (min(scaled[0], canvas[0]), min(scaled[1], canvas[1]))
    edges = []
    for axis in (0, 1):
        first = int(place[axis] * (scaled[axis] - size[axis] + 1))
        start = min(round(first * image[axis] / scaled[axis]), image[axis] - 1)
        length = max(1, min(round(size[axis] * image[axis] / scaled[axis]), image[axis] - start))
        edges.append((start, length))
    (top, height), (left, width) = edges
    return Placement(Box(top, left, height, width), size, flip)
