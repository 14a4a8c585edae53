"""Read annotations in YOLO's text files, one an image: ``CLASS x y width height``, as shares of the image.

Lines with more numbers hold a polygon: ``CLASS x1 y1 x2 y2 ...``.
"""

from pathlib import Path

import numpy as np

from fastmim.data.annotations.instances import Annotated, Faults, InstanceImages, Segmentation, clean
from fastmim.data.decode.image import image_size
from fastmim.data.decode.pixels import UnreadableImage
from fastmim.data.sources.base import FileImages
from fastmim.data.sources.files import read_regular
from fastmim.data.sources.index import counted
from fastmim.errors import UsageError

MOST_BYTES = 1 << 24  # of a text file


def read_yolo(pairs: list[tuple[str, Path | None]], images: Path, classes: tuple[str, ...]) -> InstanceImages:
    """Read the objects of images; an image without a text file has no objects.

    Args:
        pairs: name of each image below ``images``, and its text file.
        classes: names of the classes; lines hold their numbers, from 0.

    Raises:
        UsageError: a line names a class that there is not, or is no annotation.
    """
    faults = Faults()
    source = FileImages(str(images), [name for name, _ in pairs])
    rows: list[Annotated] = []
    kept: list[int] = []
    unreadable: list[str] = []
    for number, (name, file) in enumerate(pairs):
        try:
            height, width = image_size(source.read(number))
        except (OSError, UnreadableImage) as error:
            unreadable.append(f"{name}: {error}")
            continue
        kept.append(number)
        boxes, labels, shapes = [], [], []
        for label, values in _lines(file, len(classes)) if file else ():
            scaled = np.array(values, np.float64) * np.tile([width, height], len(values) // 2)
            segmentation: Segmentation | None = None
            if len(values) == 4:
                x, y, wide, tall = scaled
                boxes.append((x - wide / 2, y - tall / 2, x + wide / 2, y + tall / 2))
            else:
                points = scaled.reshape(-1, 2).astype(np.float32)
                boxes.append((*points.min(0), *points.max(0)))
                segmentation = [points]
            labels.append(label)
            shapes.append(segmentation)
        rows.append(
            clean(
                boxes,
                labels,
                [False] * len(boxes),
                shapes,
                [None] * len(boxes),
                (height, width),
                name,
                faults,
            )
        )
    notes = [f"{counted(len(unreadable), 'image')} unreadable: {unreadable[0]}"] if unreadable else []
    alone = sum(file is None for _, file in pairs)
    if alone:
        notes.append(f"{counted(alone, 'image')} without a text file: taken to have no objects")
    return InstanceImages(
        FileImages(str(images), [pairs[number][0] for number in kept]),
        np.arange(len(kept)),
        tuple(rows),
        classes,
        tuple(range(len(classes))),
        tuple(range(1, len(kept) + 1)),
        any(shape is not None for row in rows for shape in row.segmentations),
        (*notes, *faults.notes()),
    )


def _lines(file: Path, classes: int) -> list[tuple[int, list[float]]]:
    """Return the class and the numbers of each line."""
    found = []
    try:
        text = read_regular(file, MOST_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"data: {file} cannot be read: {error}") from error
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words:
            continue
        try:
            label, values = int(words[0]), [float(word) for word in words[1:]]
        except ValueError:
            label, values = -1, []
        if not 0 <= label < classes:
            raise UsageError(f"data: {file}, line {number}: {words[0]!r} is none of the {classes} classes")
        if len(values) != 4 and (len(values) < 6 or len(values) % 2):
            raise UsageError(
                f"data: {file}, line {number}: {len(values)} numbers; 4 make a box, 6 or more a polygon"
            )
        found.append((label, values))
    return found
