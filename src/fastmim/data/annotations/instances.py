"""Images with boxes and masks of objects, from any of the supported formats."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

import numpy as np
from faster_coco_eval import mask as coco_mask
from numpy.typing import NDArray

from fastmim.data.decode.pixels import UnreadableImage
from fastmim.data.sources.base import ImageSource
from fastmim.data.sources.index import counted
from fastmim.data.transforms.placement import Placement
from fastmim.errors import UsageError
from fastmim.system.size import Size

LEAST_SIDE = 1.0  # pixels; smaller boxes are degenerate
Segmentation = Sequence[NDArray[np.float32]] | Mapping[str, Any]
"""Polygons, each (points, 2) as x and y in pixels; or a run-length encoding by COCO: size and counts."""


class Annotated(NamedTuple):
    """Objects of one image."""

    boxes: NDArray[np.float32]
    """(N, 4), x1, y1, x2, y2, in pixels of the upright image."""
    labels: NDArray[np.int64]
    """(N,), class numbers from 0."""
    crowd: NDArray[np.bool_]
    """(N,), whether the box holds a group of objects: not trained on, and ignored in scores."""
    segmentations: tuple[Segmentation | None, ...]
    areas: NDArray[np.float32]
    """(N,), pixels: as the data states it, or of the box."""


@dataclass
class Faults:
    """Counts of what was wrong with annotations, and what was done about it."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def note(self, fault: str, example: str) -> None:
        """Count a fault; ``fault`` describes it with ``{}`` for the number of objects."""
        self.counts[fault] = self.counts.get(fault, 0) + 1
        self.examples.setdefault(fault, example)

    def notes(self) -> tuple[str, ...]:
        """Return a sentence for each kind of fault."""
        return tuple(
            f"{fault.format(f'{count:,}')} (such as in {self.examples[fault]})"
            for fault, count in self.counts.items()
        )


@dataclass(frozen=True)
class InstanceImages:
    """Images with objects."""

    source: ImageSource
    indices: NDArray[np.int64]
    """Indices into the source."""
    objects: tuple[Annotated, ...]
    """Objects of each image of the source."""
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    """Number of each class in the data's own files."""
    image_ids: tuple[int, ...]
    """Number of each image in the data's own files."""
    has_masks: bool
    notes: tuple[str, ...] = ()
    """Sentences about the data, to be shown to the user."""

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, positions: NDArray[np.int64]) -> Self:
        return replace(self, indices=self.indices[positions])

    @property
    def object_count(self) -> int:
        """Number of objects in the images of ``indices``, without crowds."""
        return sum(int((~self.objects[index].crowd).sum()) for index in self.indices)


def clean(
    boxes: Iterable[Sequence[float]],
    labels: Iterable[int],
    crowd: Iterable[bool],
    segmentations: Iterable[Segmentation | None],
    areas: Iterable[float | None],
    size: Size | None,
    name: str,
    faults: Faults,
) -> Annotated:
    """Clip boxes to the image and leave out those that are degenerate, counting both.

    Args:
        size: (H, W) of the image; None if it is not known before the image is read.
        name: of the image, for messages.
    """
    kept: list[tuple[NDArray[np.float32], int, bool, Segmentation | None, float]] = []
    rows = zip(boxes, labels, crowd, segmentations, areas, strict=True)
    for box, label, is_crowd, segmentation, area in rows:
        corners = np.asarray(box, np.float64)
        if not np.isfinite(corners).all():
            faults.note("{} boxes that are not finite left out", name)
            continue
        if size is not None:
            clipped = np.clip(corners, 0, [size[1], size[0], size[1], size[0]])
            if np.abs(clipped - corners).max() > LEAST_SIDE:
                faults.note("{} boxes clipped to their image", name)
            corners = clipped
        if min(corners[2:] - corners[:2]) < LEAST_SIDE:
            faults.note("{} boxes of less than a pixel left out", name)
            continue
        known_area = float(np.prod(corners[2:] - corners[:2])) if area is None else area
        kept.append((corners.astype(np.float32), label, bool(is_crowd), segmentation, known_area))
    return Annotated(
        np.array([row[0] for row in kept], np.float32).reshape(-1, 4),
        np.array([row[1] for row in kept], np.int64),
        np.array([row[2] for row in kept], bool),
        tuple(row[3] for row in kept),
        np.array([row[4] for row in kept], np.float32),
    )


def draw_mask(
    segmentation: Segmentation, original: Size, canvas: Size, placement: Placement
) -> NDArray[np.uint8]:
    """Draw an object on a canvas: (H, W), 0 or 1.

    Args:
        segmentation: polygons, or a run-length encoding of ``original`` size.
        original: (H, W) of the image.
        canvas: (H, W) of the result.
        placement: position of the image on the canvas.
    """
    if isinstance(segmentation, Mapping):
        encoded: Any = dict(segmentation)
        if tuple(encoded["size"]) != original:
            (height, width), size = encoded["size"], f"{original[0]}x{original[1]}"
            raise UnreadableImage(f"a mask of {height}x{width} pixels does not fit the image of {size}")
        if isinstance(encoded["counts"], list):
            encoded = coco_mask.frPyObjects(encoded, *original)
        return placement.mask(np.ascontiguousarray(coco_mask.decode(encoded)), canvas, 0)
    polygons = [placement.points(points).reshape(-1).tolist() for points in segmentation]
    # Polygons are drawn on the box, since the mask's encoder clips them at its own borders only.
    parts: Any = coco_mask.frPyObjects(polygons, *placement.size)
    merged = coco_mask.merge(parts)
    drawn = np.zeros(canvas, np.uint8)
    drawn[: placement.size[0], : placement.size[1]] = coco_mask.decode(merged)
    return drawn


def check_some(data: InstanceImages, spec: str, split: str) -> None:
    """Raise UsageError if a split has no images or no objects."""
    if not len(data):
        raise UsageError(f"data: {spec}: {split} has no images")
    if not data.object_count:
        raise UsageError(f"data: {spec}: {split} has {counted(len(data), 'image')}, but no objects")
