"""Labelled data sets: training and validation images with their classes, and subsets with few labels."""

import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fastmim.data.parts import classes_by_folder, open_parts
from fastmim.data.seeds import FEW_SEED, LABEL_SEED
from fastmim.data.settings import parse_labels
from fastmim.data.sources.base import HasLabels, ImageSource, notes_of
from fastmim.data.sources.columns import Columns
from fastmim.data.sources.demo import digit_labels
from fastmim.errors import UsageError

IMBALANCED = 3.0  # times as many images in the largest class as in the smallest


@dataclass(frozen=True)
class Labelled:
    """Images of a source and the class of each."""

    source: ImageSource
    indices: NDArray[np.int64]
    """Indices into the source."""
    labels: NDArray[np.int64]
    """Class numbers, 0 .. len(classes) - 1, one for each of ``indices``."""
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """Sentences about the origin of the data, to be shown to the user."""

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def per_class(self) -> NDArray[np.int64]:
        """Number of images of each class."""
        return np.bincount(self.labels, minlength=len(self.classes))

    def by_index(self) -> NDArray[np.int64]:
        """Return the class of each image of the source; -1 for images outside this set."""
        table = np.full(len(self.source), -1, dtype=np.int64)
        table[self.indices] = self.labels
        return table

    def take(self, positions: NDArray[np.int64]) -> "Labelled":
        return replace(self, indices=self.indices[positions], labels=self.labels[positions])


def open_labelled(
    spec: str,
    val_share: float,
    seed: int,
    columns: Columns | None = None,
    without: str | os.PathLike[str] | None = None,
) -> tuple[Labelled, Labelled]:
    """Open labelled data as a pair (training, validation).

    Args:
        spec: a folder with train/ and val/ (or training_set/, dev/, Test/ and the like), each with one
            folder per class; or a single folder of class folders, a tar, parquet, a saved dataset,
            ``hf:NAME[:SPLIT]`` or ``demo:digits``.
        val_share: share of each class that is held out for validation if the data has no such split.
        seed: seed of that split.
        columns: the table columns of images and classes. Default: found by name and type.
        without: a folder to exclude, even if it lies within the data.

    Raises:
        UsageError: there are no images or no classes, a class occurs only in validation, or it is ambiguous
            which part of the data is meant.
    """
    parts = open_parts(spec, columns or Columns(), without)
    source, names = parts.training()
    classes = in_order(names)
    training = _labelled(source, names, classes, spec)
    training = replace(training, notes=(*parts.notes, *notes_of(source)))
    if parts.validation is None:
        return split_classes(training, val_share, seed, spec)
    validation = _labelled(*parts.validation(), classes, spec)
    others = [f"validation: {note}" for note in notes_of(validation.source) if note not in training.notes]
    return replace(training, notes=(*training.notes, *others)), validation


def class_names(spec: str, source: ImageSource) -> list[str] | None:
    """Return the class name of each image of a source from `open_images`; None if it has no classes."""
    if spec == "demo:digits":
        return digit_labels()
    try:
        if isinstance(source, HasLabels):
            return source.labels(spec)
        names = classes_by_folder(source, spec)
    except UsageError:
        return None
    return None if any(name is None for name in names) else [name for name in names if name is not None]


def few_labels(data: Labelled, wanted: str | None, seed: int) -> Labelled:
    """Draw a subset by ``seed``: the same share, or the same number, of images from each class.

    Args:
        wanted: ``0.01``, a share of the images of each class (at least one image per class); ``10/class``, a
            number of images; None or ``1`` for all.

    Raises:
        UsageError: ``wanted`` is none of these, or a class has fewer images.
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


def split_classes(data: Labelled, val_share: float, seed: int, spec: str) -> tuple[Labelled, Labelled]:
    """Split off a share of each class for validation, drawn by ``seed``: at least one image, but not all.

    Raises UsageError if a class has fewer than two images.
    """
    generator = np.random.default_rng([LABEL_SEED, seed])
    kept = np.zeros(len(data), dtype=bool)
    for label, images in enumerate(data.per_class):
        if images < 2:
            raise UsageError(
                f"data: {spec}: class {data.classes[label]!r} has {images} image; two are needed, one to "
                "train on and one for validation"
            )
        number = min(max(1, round(val_share * images)), images - 1)
        kept[generator.permutation(np.flatnonzero(data.labels == label))[:number]] = True
    return data.take(np.flatnonzero(~kept)), data.take(np.flatnonzero(kept))


def imbalance(data: Labelled) -> str | None:
    """Return a warning if the largest class has `IMBALANCED` times the images of the smallest; else None."""
    counts = data.per_class
    least, most = int(counts.argmin()), int(counts.argmax())
    if counts[most] < IMBALANCED * max(int(counts[least]), 1):
        return None
    return (
        f"classes are unequal: {data.classes[most]} has {counts[most]} images, {data.classes[least]} "
        f"{counts[least]}; top-1 counts images, so see also the mean over classes"
    )


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
            + _alike(name, classes)
        )
    labels = np.array([numbers[name] for name in names], dtype=np.int64)
    return Labelled(source, np.arange(len(labels)), labels, classes)


def _alike(name: str, classes: Sequence[str]) -> str:
    """Return a hint if a training class differs from ``name`` only in its Unicode form; else ``""``."""
    plain = unicodedata.normalize("NFC", name)
    found = next((other for other in classes if unicodedata.normalize("NFC", other) == plain), None)
    if found is None:
        return ""
    return f": its {found!a} is written in another form of Unicode ({name!a}); rename one of them"


def in_order(names: list[str]) -> tuple[str, ...]:
    """Return the distinct class names, sorted: numbers by value, before words."""
    return tuple(sorted(set(names), key=_natural))


def _natural(name: str) -> tuple[int, int, str]:
    """Sort key of a class name: numbers by value, before words."""
    return (0, int(name), name) if name.isdecimal() else (1, 0, name)
