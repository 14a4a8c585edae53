"""Find the training and validation parts of labelled data by their names; each is opened when needed."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from fastmim.data.sources.base import HasLabels, ImageSource, Subset
from fastmim.data.sources.columns import Columns
from fastmim.data.sources.demo import digit_labels
from fastmim.data.sources.files import find_path
from fastmim.data.sources.index import holds_images, list_tables
from fastmim.data.sources.names import as_text
from fastmim.data.sources.open import open_images
from fastmim.data.sources.packed import PackedImages, is_packed
from fastmim.data.sources.tables import TableImages, is_saved, read_hub, read_parquet, read_saved
from fastmim.data.splits import (
    Found,
    Splits,
    choose_split,
    choose_splits,
    classes_note,
    find_splits,
    read_name,
    shards_name,
)
from fastmim.data.trees import DiskTree, Folder, NamesTree
from fastmim.errors import UsageError

# Opens a part of the data; returns the source and the class of each of its images.
Part = Callable[[], tuple[ImageSource, list[str]]]


class Parts(NamedTuple):
    """The training and validation parts of a data set."""

    training: Part
    validation: Part | None = None
    """None if it has to be split off the training part."""
    notes: tuple[str, ...] = ()
    """Sentences on the splits that are used and those that are ignored."""


def open_parts(spec: str, columns: Columns, without: str | os.PathLike[str] | None) -> Parts:
    """Find the training and validation parts of the data.

    The classes of a part are read when the part is called, since those of a test set may be secret.

    Raises:
        UsageError: there is no such data, or it is ambiguous which part is which.
    """
    if spec == "demo:digits":
        return Parts(lambda: (open_images(spec), digit_labels()))
    if spec.startswith("demo:"):
        raise UsageError(f"data: {spec} has no classes; demo:digits has")
    if spec.startswith("hf:"):
        return _of_tables(read_hub(spec, every_split=True), spec, columns)
    path = find_path(spec)
    if path.is_dir() and is_saved(path) and not is_packed(path):
        return _of_tables(read_saved(path), spec, columns)
    if not path.is_dir() or is_packed(path):
        return _of_paths(open_images(spec, columns), spec)
    tree = DiskTree(path)
    found = find_splits(tree, spec)
    if found is None:
        parts = _of_files(path, spec, columns, without)
        note = classes_note(tree)
        return parts._replace(notes=(*parts.notes, note)) if note else parts
    if found.classes_outside:
        return _of_paths(open_images(spec, columns, without), spec)
    folders = (str(path.joinpath(*found.place, name)) for name in found.splits[:2])
    training, validation = (partial(_of_folder, folder, columns, without) for folder in folders)
    splits = found.splits
    if tree.has_images(found.place):
        splits = splits._replace(left=(*splits.left, "."))
    return Parts(training, validation, (_said(splits, "/"),))


def splits_note(spec: str, source: ImageSource) -> str | None:
    """Return a note if the images of several splits, evaluation images included, are used; else None."""
    if ":" in spec and spec.partition(":")[0] in ("demo", "hf"):
        return None
    path = find_path(spec)
    try:
        if path.is_dir() and not is_packed(path):
            found = find_splits(DiskTree(path), spec)
            if found is None and isinstance(source, TableImages) and not is_saved(path):
                splits = choose_splits(_files_by_split(path), spec)
                return _all_taken(splits, "", "") if splits else None
        else:
            named = () if isinstance(source, TableImages) else _folders(source)
            found = find_splits(NamesTree(named), spec)
    except UsageError:
        return None
    if found is None:
        return None
    where = "" if found.classes_outside or not path.is_dir() else f"{path.joinpath(*found.place)}{os.sep}"
    return _all_taken(found.splits, "/", where)


def classes_by_folder(source: ImageSource, spec: str) -> list[str | None]:
    """Return the class of each image of all splits by its folder; None for images outside class folders.

    Raises UsageError if it is ambiguous which folders are classes.
    """
    folders = _folders(source)
    found = find_splits(NamesTree(folders), spec)
    if found is None:
        return _classes(folders)
    level = len(found.place)
    if found.classes_outside:
        return [parts[level] if len(parts) > level else None for parts in folders]
    rows: dict[str, list[int]] = {}
    for row, parts in enumerate(folders):
        if len(parts) > level:
            rows.setdefault(parts[level], []).append(row)
    names: list[str | None] = [None] * len(folders)
    for chosen in rows.values():
        for row, name in zip(chosen, _classes([folders[row][level + 1 :] for row in chosen]), strict=True):
            names[row] = name
    return names


def _of_tables(tables: Mapping[str, Any], spec: str, columns: Columns) -> Parts:
    """Find the parts of a dataset with named splits."""

    def part(name: str) -> Part:
        return partial(_table, tables[name], spec, columns)

    splits = choose_splits(tables, spec) if len(tables) > 1 else None
    if splits is not None:
        return Parts(part(splits.training), part(splits.validation), (_said(splits),))
    name = choose_split(tables, spec)
    left = [other for other in tables if other != name]
    return Parts(part(name), None, (f"{name} is used; not used: {', '.join(left)}",) if left else ())


def _of_files(path: Path, spec: str, columns: Columns, without: str | os.PathLike[str] | None) -> Parts:
    """Find the parts of a folder of classes, or of parquet files that are named after splits."""
    files = {} if holds_images(path) else _files_by_split(path)
    splits = choose_splits(files, spec) if len(files) > 1 else None
    if splits is None:
        notes = (f"the tables {', '.join(files)} are read as one",) if len(files) > 1 else ()
        return Parts(partial(_of_folder, spec, columns, without), None, notes)

    def part(name: str) -> Part:
        return lambda: _table(read_parquet(files[name], spec), spec, columns)

    return Parts(part(splits.training), part(splits.validation), (_said(splits),))


def _files_by_split(path: Path) -> dict[str, list[str]]:
    """Group the parquet files of a folder by the split that the file or its folder is named after."""
    files: dict[str, list[str]] = {}
    for file in list_tables(path):
        own, folder = shards_name(file), file.parent.name if file.parent != path else ""
        name = folder if read_name(own).role is None and read_name(folder).role is not None else own
        files.setdefault(name, []).append(str(file))
    return files


def _of_paths(source: ImageSource, spec: str) -> Parts:
    """Find the splits that the paths of the images name, if any."""
    folders = _folders(source)
    found = None if isinstance(source, TableImages) else find_splits(NamesTree(folders), spec)
    if found is None:
        note = None if isinstance(source, TableImages) else classes_note(NamesTree(folders))
        return Parts(partial(_with_classes, source, spec), None, (note,) if note else ())
    level = len(found.place) + found.classes_outside
    names = [
        parts[level] if parts[: len(found.place)] == found.place and len(parts) > level else None
        for parts in folders
    ]

    def part(name: str) -> Part:
        rows = [row for row, its in enumerate(names) if its == name]
        return partial(_rows_with_classes, source, rows, spec, found)

    outside = {"/".join(parts) or "." for parts, name in zip(folders, names, strict=True) if name is None}
    left = (*found.splits.left, *sorted(outside))
    said = _said(found.splits._replace(left=left), "/")
    return Parts(part(found.splits.training), part(found.splits.validation), (said,))


def _said(splits: Splits, mark: str = "") -> str:
    said = f"{splits.training}{mark} is used for training, {splits.validation}{mark} for validation"
    return said + (f"; not used: {', '.join(name + mark for name in splits.left)}" if splits.left else "")


def _all_taken(splits: Splits, mark: str, where: str) -> str:
    names = [name + mark for name in (splits.training, splits.validation, *splits.left)]
    said = f"all images of {', '.join(names)} are used"
    return (
        f"{said}; to leave out the validation images, give {where}{splits.training}"
        if mark and where
        else said
    )


def _table(table: Any, where: str, columns: Columns) -> tuple[ImageSource, list[str]]:
    source = TableImages(table, where, columns)
    return source, source.labels(where)


def _of_folder(
    spec: str, columns: Columns, without: str | os.PathLike[str] | None
) -> tuple[ImageSource, list[str]]:
    return _with_classes(open_images(spec, columns, without), spec)


def _with_classes(source: ImageSource, spec: str) -> tuple[ImageSource, list[str]]:
    """Return the whole source with its stored classes, or else with those of its folders."""
    if isinstance(source, HasLabels):
        return source, source.labels(spec)
    return source, _known(_classes(_folders(source)), source, spec)


def _rows_with_classes(
    source: ImageSource, rows: list[int], spec: str, found: Found
) -> tuple[ImageSource, list[str]]:
    part = Subset(source, np.array(rows, dtype=np.int64))
    splits = {*found.splits[:2], *found.splits.left}
    if isinstance(source, PackedImages) and not splits.issuperset(source.classes or ()):
        names = source.labels(spec)
        return part, [names[row] for row in rows]
    level = len(found.place)
    below = slice(level, level + 1) if found.classes_outside else slice(level + 1, None)
    return part, _known(_classes([parts[below] for parts in _folders(part)]), part, spec)


def _known(names: Sequence[str | None], source: ImageSource, spec: str) -> list[str]:
    """Return the class names; raise UsageError if an image has none, as it lies outside the class folders."""
    for row, name in enumerate(names):
        if name is None:
            raise UsageError(
                f"data: {spec}: {as_text(source.name(row))} is in no class folder; one folder per class "
                "is needed, or train/ and val/ with such folders"
            )
    return [name for name in names if name is not None]


def _folders(source: ImageSource) -> list[Folder]:
    """Return the folders of each image as text, without uninformative ones (``./``, ``..``, the root)."""
    cache: dict[str, Folder] = {}  # many images share a folder
    found = []
    for index in range(len(source)):
        folder = os.path.dirname(source.name(index))
        if folder not in cache:
            parts = PurePosixPath(as_text(folder.replace(os.sep, "/"))).parts
            cache[folder] = tuple(part for part in parts if part not in ("..", "/"))
        found.append(cache[folder])
    return found


def _classes(folders: Sequence[Folder]) -> list[str | None]:
    """Return the class of each image: the first folder level that differs, below folders that all share."""
    level = 0
    while all(len(parts) > level + 1 for parts in folders) and len({parts[level] for parts in folders}) == 1:
        level += 1
    return [parts[level] if len(parts) > level else None for parts in folders]
