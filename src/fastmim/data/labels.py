"""Images with classes: what is trained on and what is measured on, and how few labels may be used."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastmim.data.demo import digit_labels
from fastmim.data.feed import FEW_SEED, LABEL_SEED
from fastmim.data.images import ImageSource, Subset, open_images
from fastmim.data.packed import PackedImages, is_packed
from fastmim.data.tables import TableImages, is_saved, read_hub, read_labels, read_parquet, read_saved
from fastmim.errors import UsageError

TRAINING = ("train", "training")
VALIDATION = ("val", "validation", "valid", "test", "testing")
# Opens a part of the data: the source, and the class of each of its images.
Split = Callable[[], tuple[ImageSource, list[str]]]
IMBALANCED = 3.0  # times as many images in the largest class as in the smallest


@dataclass(frozen=True)
class Labelled:
    """Images of a source, and the class of each."""

    source: ImageSource
    indices: NDArray[np.int64]
    """Into the source."""
    labels: NDArray[np.int64]
    """Of the same length, 0 .. len(classes) - 1."""
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def per_class(self) -> NDArray[np.int64]:
        """Images of each class."""
        return np.bincount(self.labels, minlength=len(self.classes))

    def by_index(self) -> NDArray[np.int64]:
        """The class of each image of the source; -1 for those that are not among these."""
        table = np.full(len(self.source), -1, dtype=np.int64)
        table[self.indices] = self.labels
        return table

    def take(self, positions: NDArray[np.int64]) -> "Labelled":
        return replace(self, indices=self.indices[positions], labels=self.labels[positions])


def open_labelled(spec: str, val_share: float, seed: int) -> tuple[Labelled, Labelled]:
    """Open what a person calls their labelled data: (for training, for validation).

    Args:
        spec: a folder with train/ and val/ (or validation/, test/), each with a folder a class; or one
            folder of such folders, parquet, a saved dataset, ``hf:NAME[:SPLIT]`` or ``demo:digits``.
        val_share: share of each class that is kept for validation where the data has no such split.
        seed: draws them.

    Raises:
        UsageError: there are no images, no classes, or classes that only validation has.
    """
    splits = _splits(spec)
    training, validation = _first(splits, TRAINING), _first(splits, VALIDATION)
    if training is None or validation is None:
        source, names = (training or validation or next(iter(splits.values())))()
        whole = _labelled(source, names, in_order(names), spec)
        return split_classes(whole, val_share, seed, spec)
    source, names = training()
    classes = in_order(names)
    return _labelled(source, names, classes, spec), _labelled(*validation(), classes, spec)


def class_names(spec: str, source: ImageSource) -> list[str] | None:
    """The class of each image of what `open_images` opened, by name; None where it has none."""
    if spec == "demo:digits":
        return digit_labels()
    try:
        if isinstance(source, (TableImages, PackedImages)):
            return source.labels(spec)
        folders = [Path(source.name(index)).parts[:-1] for index in range(len(source))]
        splits = all(parts[:1] and parts[0] in (*TRAINING, *VALIDATION) for parts in folders)
        level = 1 if splits else _class_level(folders)
        return [parts[level] for parts in folders]
    except (UsageError, IndexError):
        return None


def few_labels(data: Labelled, wanted: str | None, seed: int) -> Labelled:
    """A part of the images, the same share of each class, drawn by ``seed``.

    Args:
        wanted: ``0.01``, a share of the images of each class (at least one of each), ``10/class``, or
            None or ``1`` for all.

    Raises:
        UsageError: it is neither, or a class has fewer images.
    """
    if wanted is None:
        return data
    share, count = parse_labels(wanted)
    generator = np.random.default_rng([FEW_SEED, seed])
    kept = []
    for label, images in enumerate(data.per_class):
        number = count if count is not None else max(1, round(share * images))
        if number > images:
            raise UsageError(
                f"labels = {wanted}: class {data.classes[label]!r} has only {images} training images"
            )
        kept.append(generator.permutation(np.flatnonzero(data.labels == label))[:number])
    return data.take(np.sort(np.concatenate(kept)))


def parse_labels(wanted: str) -> tuple[float, int | None]:
    """``0.01`` -> (0.01, None), ``10/class`` -> (1.0, 10). Raises UsageError."""
    match = re.fullmatch(r"(\d+)\s*/\s*class", wanted.strip())
    if match and int(match[1]) > 0:
        return 1.0, int(match[1])
    try:
        share = float(wanted)
    except ValueError:
        share = 0.0
    if match or not 0 < share <= 1:
        raise UsageError(f"labels = {wanted} must be a share, 0 < share <= 1, or a number as 10/class")
    return share, None


def split_classes(data: Labelled, val_share: float, seed: int, spec: str) -> tuple[Labelled, Labelled]:
    """Keep a share of each class, drawn by ``seed``: at least one image, and at least one to train on."""
    generator = np.random.default_rng([LABEL_SEED, seed])
    kept = np.zeros(len(data), dtype=bool)
    for label, images in enumerate(data.per_class):
        if images < 2:
            raise UsageError(
                f"data: {spec}: class {data.classes[label]!r} has {images} image; two are needed, one to "
                "train on and one to measure on"
            )
        number = min(max(1, round(val_share * images)), images - 1)
        kept[generator.permutation(np.flatnonzero(data.labels == label))[:number]] = True
    return data.take(np.flatnonzero(~kept)), data.take(np.flatnonzero(kept))


def imbalance(data: Labelled) -> str | None:
    """A line that says how unequal the classes are, where they are."""
    counts = data.per_class
    least, most = int(counts.argmin()), int(counts.argmax())
    if counts[most] < IMBALANCED * max(int(counts[least]), 1):
        return None
    return (
        f"classes are unequal: {data.classes[most]} has {counts[most]} images, {data.classes[least]} "
        f"{counts[least]}; top-1 counts images, so see also the mean over classes"
    )


def _splits(spec: str) -> dict[str, Split]:
    """Every split by name; its classes are read when it is called, as those of a test split may be secret."""
    if spec == "demo:digits":
        return {"train": lambda: (open_images(spec), digit_labels())}
    if spec.startswith("demo:"):
        raise UsageError(f"data: {spec} has no classes; demo:digits has")
    if spec.startswith("hf:"):
        return {
            name: partial(_table, table, spec) for name, table in read_hub(spec, every_split=True).items()
        }
    path = Path(spec).expanduser()
    if path.is_dir() and is_packed(path):
        return _packed(path, spec)
    if path.is_dir() and is_saved(path):
        return {name: partial(_table, table, spec) for name, table in read_saved(path).items()}
    folders = {name: path / name for name in (*TRAINING, *VALIDATION) if (path / name).is_dir()}
    if any(name in folders for name in TRAINING) and any(name in folders for name in VALIDATION):
        return {name: partial(_classes_of, str(folder)) for name, folder in folders.items()}
    files = {split: sorted(path.rglob(f"{split}*.parquet")) for split in (*TRAINING, *VALIDATION)}
    if path.is_dir() and any(files[name] for name in TRAINING) and any(files[name] for name in VALIDATION):
        return {split: partial(_parquet, found, spec) for split, found in files.items() if found}
    return {"train": partial(_classes_of, spec)}


def _parquet(files: list[Path], spec: str) -> tuple[ImageSource, list[str]]:
    return _table(read_parquet([str(file) for file in files], spec), spec)


def _classes_of(spec: str) -> tuple[ImageSource, list[str]]:
    """A source of files, whose classes are their first folders; or a table."""
    source = open_images(spec)
    if isinstance(source, (TableImages, PackedImages)):
        return source, source.labels(spec)
    names = [Path(source.name(index)).parts for index in range(len(source))]
    level = _class_level([parts[:-1] for parts in names])
    for parts in names:
        if len(parts) < level + 2:
            raise UsageError(
                f"data: {spec}: {'/'.join(parts)} lies in no folder of a class; one folder a class is "
                "needed, or train/ and val/ of such folders"
            )
    return source, [parts[level] for parts in names]


def _class_level(folders: list[tuple[str, ...]]) -> int:
    """Which folder of each path is the class: a tar, or a folder, may hold everything in one more folder."""
    level = 0
    while all(len(parts) > level + 1 for parts in folders) and len({parts[level] for parts in folders}) == 1:
        level += 1
    return level


def _packed(path: Path, spec: str) -> dict[str, Split]:
    """The splits that the packed paths begin with, if they do."""
    source = open_images(str(path))
    if not isinstance(source, PackedImages):
        return {"train": partial(_classes_of, spec)}
    firsts = [source.name(index).partition("/")[0] for index in range(len(source))]
    found = set(firsts)
    if not (found <= {*TRAINING, *VALIDATION} and found & set(TRAINING) and found & set(VALIDATION)):
        return {"train": partial(_classes_of, spec)}

    def part(split: str) -> tuple[ImageSource, list[str]]:
        rows = [row for row, first in enumerate(firsts) if first == split]
        names = source.labels(spec)
        return Subset(source, np.array(rows, dtype=np.int64)), [names[row] for row in rows]

    return {split: partial(part, split) for split in found}


def _table(table: object, where: str) -> tuple[ImageSource, list[str]]:
    return TableImages(table, where), read_labels(table, where)


def _labelled(source: ImageSource, names: list[str], classes: tuple[str, ...], spec: str) -> Labelled:
    if not names:
        raise UsageError(f"data: {spec} has a split without images")
    if len(classes) < 2:
        raise UsageError(f"data: {spec} has one class only, {classes[0]!r}; two or more are needed")
    numbers = {name: number for number, name in enumerate(classes)}
    others = Counter(name for name in names if name not in numbers)
    if others:
        name, count = others.most_common(1)[0]
        raise UsageError(
            f"data: {spec}: validation has {count} images of class {name!r}, of which training has none"
        )
    labels = np.array([numbers[name] for name in names], dtype=np.int64)
    return Labelled(source, np.arange(len(labels)), labels, classes)


def _first(splits: dict[str, Split], names: tuple[str, ...]) -> Split | None:
    return next((splits[name] for name in names if name in splits), None)


def in_order(names: list[str]) -> tuple[str, ...]:
    """Each class once, sorted."""
    return tuple(sorted(set(names), key=_natural))


def _natural(name: str) -> tuple[int, int, str]:
    """Numbers by value, before words."""
    return (0, int(name), name) if name.isdecimal() else (1, 0, name)
