"""Read annotations in COCO's JSON."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmim.data.annotations.instances import Annotated, Faults, InstanceImages, Segmentation, clean
from fastmim.data.annotations.run_lengths import check_encoding
from fastmim.data.sources.base import FileImages
from fastmim.data.sources.index import counted
from fastmim.errors import UsageError
from fastmim.system.documents import read_json
from fastmim.system.size import Size

if TYPE_CHECKING:
    from numpy.typing import NDArray


def read_coco(file: Path, images: Path, classes: tuple[int, ...] | None = None) -> InstanceImages:
    """Read a JSON file of annotations, and the images in a folder.

    Args:
        file: JSON with ``images``, ``annotations`` and ``categories``.
        images: folder of the files that it names.
        classes: category ids of the classes, in order; default: all of the file, by id.

    Raises:
        UsageError: the file is not such JSON, or none of its images exists.
    """
    content = read_json(file)
    if not isinstance(content, dict):
        raise UsageError(
            f"data: {file} is not COCO's JSON: it holds a {type(content).__name__}, not an object"
        )
    rows = {name: _rows(content, name, file) for name in ("images", "annotations", "categories")}
    # Classes: category ids may have gaps.
    names = {_whole(row, "id", file): str(row.get("name", row["id"])) for row in rows["categories"]}
    ids = tuple(sorted(names)) if classes is None else classes
    numbers = {category: number for number, category in enumerate(ids)}
    # Images: those without objects count, those without a file are left out.
    faults = Faults()
    known: dict[int, dict[str, Any]] = {}
    missing: list[str] = []
    for row in rows["images"]:
        name = row.get("file_name")
        if not isinstance(name, str) or not name:
            raise UsageError(f"data: {file}: images: file_name = {name!r} is not the name of a file")
        if not (images / name).is_file():
            missing.append(name)
            continue
        known[_whole(row, "id", file)] = row
    if not known:
        raise UsageError(
            f"data: {file}: none of its {counted(len(missing), 'image')} is in {images}"
            + (f", such as {missing[0]}" if missing else "")
        )
    # Objects of each image.
    found: dict[int, list[dict[str, Any]]] = {image: [] for image in known}
    others: Counter[str] = Counter()
    for row in rows["annotations"]:
        if row.get("image_id") not in known:
            others["of images that are left out or not listed"] += 1
        elif row.get("category_id") not in numbers:
            others["of unknown categories"] += 1
        elif len(row.get("bbox") or ()) != 4:
            others["without a box"] += 1
        else:
            found[row["image_id"]].append(row)
    objects = [
        _objects(found[image], numbers, _size(known[image]), known[image]["file_name"], faults)
        for image in known
    ]
    notes = [
        *(
            [f"{counted(len(missing), 'image')} without a file left out, such as {missing[0]}"]
            if missing
            else []
        ),
        *(f"{counted(count, 'object')} {what} left out" for what, count in others.items()),
        *faults.notes(),
    ]
    has_masks = any(s is not None for row in objects for s in row.segmentations)
    return InstanceImages(
        FileImages(str(images), [known[image]["file_name"] for image in known]),
        np.arange(len(known)),
        tuple(objects),
        tuple(names.get(category, str(category)) for category in ids),
        ids,
        tuple(known),
        has_masks,
        tuple(notes),
    )


def _objects(
    rows: list[dict[str, Any]], numbers: dict[int, int], size: Size | None, name: str, faults: Faults
) -> Annotated:
    boxes = []
    for row in rows:
        left, top, width, height = (_number(value) for value in row["bbox"])
        boxes.append((left, top, left + width, top + height))
    return clean(
        boxes,
        [numbers[row["category_id"]] for row in rows],
        [bool(row.get("iscrowd")) for row in rows],
        [_segmentation(row.get("segmentation"), size, name, faults) for row in rows],
        [area if isinstance(area := row.get("area"), int | float) else None for row in rows],
        size,
        name,
        faults,
    )


def _segmentation(value: Any, size: Size | None, name: str, faults: Faults) -> Segmentation | None:
    """Return polygons or a run-length encoding; None if there is none, or a wrong one."""
    if isinstance(value, dict) and "counts" in value and "size" in value:
        try:
            check_encoding(value, size)
        except ValueError:
            faults.note("{} masks whose run-length encoding does not fit left out", name)
            return None
        return value
    if isinstance(value, list) and value:
        polygons: list[NDArray[np.float32]] = []
        for part in value:
            if not isinstance(part, list) or len(part) < 6 or len(part) % 2:
                faults.note("{} polygons of fewer than three points left out", name)
                continue
            polygons.append(np.array([_number(number) for number in part], np.float32).reshape(-1, 2))
        return polygons or None
    return None


def _size(row: dict[str, Any]) -> Size | None:
    height, width = row.get("height"), row.get("width")
    return (
        (height, width)
        if isinstance(height, int) and isinstance(width, int) and min(height, width) > 0
        else None
    )


def _rows(content: dict[str, Any], name: str, file: Path) -> list[dict[str, Any]]:
    rows = content.get(name)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UsageError(f"data: {file} is not COCO's JSON: {name} is missing, or not a list of objects")
    return rows


def _whole(row: dict[str, Any], name: str, file: Path) -> int:
    value = row.get(name)
    if not isinstance(value, int):
        raise UsageError(f"data: {file}: {name} = {value!r} is not a whole number")
    return value


def _number(value: Any) -> float:
    """Return a number; NaN for anything else."""
    return float(value) if isinstance(value, int | float) else float("nan")
