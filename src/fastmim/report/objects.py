"""Objects of an image, and pictures of them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

COVER = 0.45  # opacity of masks


class Detections(NamedTuple):
    """Objects found in one image, the most certain first."""

    boxes: NDArray[np.float32]
    """(N, 4), x1, y1, x2, y2, in pixels of the upright image."""
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    """(N,), class numbers from 0."""
    masks: NDArray[np.bool_] | None
    """(N, H, W) of the image; None for a detector of boxes only."""


def kept(found: Detections, chosen: NDArray[np.bool_]) -> Detections:
    """Return some of the detections."""
    masks = None if found.masks is None else found.masks[chosen]
    return Detections(found.boxes[chosen], found.scores[chosen], found.labels[chosen], masks)


def draw_objects(
    axes: Axes,
    pixels: NDArray[np.uint8],
    found: Detections,
    original: tuple[int, int],
    colours: NDArray[np.uint8],
    classes: Sequence[str] = (),
) -> None:
    """Draw boxes and masks over a picture of any size, with names and scores if ``classes`` are given."""
    picture = pixels.astype(np.float32)
    factor = np.array([pixels.shape[1] / original[1], pixels.shape[0] / original[0]] * 2)
    rows = np.minimum((np.arange(pixels.shape[0]) / factor[1]).astype(int), original[0] - 1)
    columns = np.minimum((np.arange(pixels.shape[1]) / factor[0]).astype(int), original[1] - 1)
    for number, label in enumerate(found.labels):
        if found.masks is not None:
            small = found.masks[number][np.ix_(rows, columns)]
            picture[small] = (1 - COVER) * picture[small] + COVER * colours[label]
    axes.imshow(picture.astype(np.uint8))
    for box, label, score in zip(found.boxes * factor, found.labels, found.scores, strict=True):
        x1, y1, x2, y2 = box
        colour = tuple(colours[label] / 255)
        axes.add_patch(
            Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=1.2)
        )
        if classes:
            text = f"{classes[label]} {100 * score:.0f}"
            axes.text(x1, y1 - 2, text, fontsize=7, color="white", backgroundcolor=colour)
    axes.set_axis_off()
