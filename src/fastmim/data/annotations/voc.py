"""Read annotations in Pascal VOC's XML, one file an image."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np

from fastmim.data.annotations.instances import Annotated, Faults, InstanceImages, clean
from fastmim.data.sources.base import FileImages
from fastmim.data.sources.files import read_regular
from fastmim.data.sources.index import counted
from fastmim.errors import UsageError
from fastmim.system.size import Size

MOST_BYTES = 1 << 24  # of an XML file
CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_voc(
    pairs: list[tuple[str, Path]], images: Path, classes: tuple[str, ...] | None = None
) -> InstanceImages:
    """Read the objects of images; ``difficult`` ones are not trained on, and are ignored in scores.

    Args:
        pairs: name of each image below ``images``, and its XML file.
        classes: names of the classes, in order; default: those found, sorted.

    Raises:
        UsageError: none of the files can be read.
    """
    faults = Faults()
    read: list[tuple[str, list[tuple[str, list[float], bool]], Size | None]] = []
    broken: list[str] = []
    for name, file in pairs:
        try:
            read.append((name, *_objects(file)))
        except (OSError, ValueError, ElementTree.ParseError) as error:
            broken.append(f"{file}: {error}")
    if not read:
        raise UsageError(f"data: no annotation can be read; the first: {broken[0] if broken else images}")
    found = sorted({label for _, objects, _ in read for label, *_ in objects})
    names = tuple(found) if classes is None else classes
    numbers = {label: number for number, label in enumerate(names)}
    rows: list[Annotated] = []
    for name, objects, size in read:
        known = [row for row in objects if row[0] in numbers]
        if len(known) < len(objects):
            faults.note("{} images with objects of classes that training has not", name)
        rows.append(
            clean(
                [corners for _, corners, _ in known],
                [numbers[label] for label, *_ in known],
                [difficult for *_, difficult in known],
                [None] * len(known),
                [None] * len(known),
                size,
                name,
                faults,
            )
        )
    notes = [f"{counted(len(broken), 'file')} unreadable: {broken[0]}"] if broken else []
    count = len(read)
    return InstanceImages(
        FileImages(str(images), [name for name, *_ in read]),
        np.arange(count),
        tuple(rows),
        names,
        tuple(range(1, len(names) + 1)),
        tuple(range(1, count + 1)),
        False,
        (*notes, *faults.notes()),
    )


def _objects(file: Path) -> tuple[list[tuple[str, list[float], bool]], Size | None]:
    """Return (class, corners, difficult) of each object, and the size of the image."""
    content = read_regular(file, MOST_BYTES)
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:  # entities can expand without bound
        raise ValueError("it declares a document type, which annotations do not need")
    root = ElementTree.fromstring(content)  # noqa: S314 - without entities
    objects = []
    for item in root.iter("object"):
        box = item.find("bndbox")
        label = (item.findtext("name") or "").strip()
        if box is None or not label:
            continue
        left, top, right, bottom = (float(box.findtext(corner) or "nan") for corner in CORNERS)
        difficult = (item.findtext("difficult") or "0").strip() == "1"
        objects.append((label, [left - 1, top - 1, right, bottom], difficult))  # counted from 1, inclusive
    height, width = (int(float(root.findtext(f"size/{side}") or 0)) for side in ("height", "width"))
    return objects, (height, width) if min(height, width) > 0 else None
