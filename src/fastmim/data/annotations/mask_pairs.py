"""Find images with their masks, the split, and the names of the classes."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from fastmim.data.annotations.masks import MOST_CLASSES, MaskCode, read_ids
from fastmim.data.decode.pixels import UnreadableImage
from fastmim.data.seeds import LABEL_SEED
from fastmim.data.sources.base import FileImages, ImageSource
from fastmim.data.sources.files import find_path, read_regular
from fastmim.data.sources.index import counted, is_hidden, is_image_name
from fastmim.data.splits import Splits, choose_splits
from fastmim.errors import UsageError

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "photos", "jpegimages", "leftimg8bit")
MASK_FOLDERS = (
    "annotations",
    "annotation",
    "masks",
    "mask",
    "labels",
    "label",
    "gt",
    "gtfine",
    "segmentationclass",
)
SUFFIXES = (
    "_mask",
    "_masks",
    "_label",
    "_labels",
    "_gt",
    "_seg",
    "_L",
    "_gtFine_labelTrainIds",
    "_labelTrainIds",
)
"""What mask files add to the name of their image."""
IMAGE_SUFFIXES = ("_leftImg8bit", "_image", "_img")
CLASS_FILES = ("classes.txt", "labels.txt", "class_names.txt")
ADE20K_CLASSES = "objectInfo150.txt"
COLOUR_LINE = re.compile(r"(\d{1,3})[\s,]+(\d{1,3})[\s,]+(\d{1,3})[\s,]+(\S.*)")
MOST_SCANNED = 1_000  # masks whose values are read if the classes are not named
HINT = "give a folder with images/ and masks/ (or annotations/), each with train/ and val/"


@dataclass(frozen=True)
class MaskedImages:
    """Images with a mask for each."""

    source: ImageSource
    masks: ImageSource
    """Mask files, in the order of ``source``."""
    indices: NDArray[np.int64]
    """Indices into both."""
    code: MaskCode
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """Sentences about the data, to be shown to the user."""

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, positions: NDArray[np.int64]) -> Self:
        return replace(self, indices=self.indices[positions])


@dataclass(frozen=True)
class MaskFormat:
    """Settings for reading masks; None where the data decides."""

    classes: str | None = None
    """File with one class name a line."""
    palette: str | None = None
    """File with lines ``R G B NAME``."""
    zero_is_unlabelled: bool | None = None
    ignore_index: int | None = 255


def open_masks(spec: str, form: MaskFormat, val_share: float, seed: int) -> tuple[MaskedImages, MaskedImages]:
    """Open images with masks as a pair (training, validation).

    Args:
        spec: a folder in the layout of ADE20K (images/training, annotations/training, ...); or with images/
            and masks/ (or labels/, annotations/, ...), which hold train/ and val/ or are in them.
        form: how to read the masks.
        val_share: share of the images that is held out for validation if there is no such split.
        seed: seed of that split.

    Raises:
        UsageError: there are no pairs, or it is unclear which folders hold what, or what the classes are.
    """
    root = find_path(spec)
    if not root.is_dir():
        raise UsageError(f"data: {spec} is a file; {HINT}")
    # Find the folders of images and masks, and pair the files.
    places, layout = _places(root, spec)
    parts = [_pair(images, masks, spec) for images, masks in places]
    notes = [layout, *(note for _, _, said in parts for note in said)]
    # Find the classes.
    code, classes, said = _classes(root, form, parts[0][1], spec, is_ade20k=layout.startswith("ADE20K"))
    notes += said
    training, *others = (
        MaskedImages(images, masks, np.arange(len(images)), code, classes) for images, masks, _ in parts
    )
    training = replace(training, notes=tuple(dict.fromkeys(notes)))
    # Split.
    if others:
        return training, others[0]
    count = len(training)
    if count < 2:
        raise UsageError(f"data: {spec} has one image with a mask; two are needed, one for validation")
    order = np.random.default_rng([LABEL_SEED, seed]).permutation(count)
    held_out = min(max(1, round(val_share * count)), count - 1)
    return training.take(np.sort(order[held_out:])), training.take(np.sort(order[:held_out]))


def _places(root: Path, spec: str) -> tuple[list[tuple[Path, Path]], str]:
    """Return the folders of images and masks, of training and validation or of both, and the layout."""
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not is_hidden(entry.name))
    images, masks = _one_of(names, IMAGE_FOLDERS, spec), _one_of(names, MASK_FOLDERS, spec)
    if images and masks:
        inner = [sorted(p.name for p in (root / name).iterdir() if p.is_dir()) for name in (images, masks)]
        splits = [
            choose_splits(found, f"{spec}/{name}") for found, name in zip(inner, (images, masks), strict=True)
        ]
        if splits[0] and splits[1]:
            pairs = [
                (root / images / a, root / masks / b)
                for a, b in zip(splits[0][:2], splits[1][:2], strict=True)
            ]
            is_ade20k = (images, masks, *splits[0][:2]) == ("images", "annotations", "training", "validation")
            return pairs, _layout("ADE20K's layout" if is_ade20k else f"{images}/ and {masks}/", splits[0])
        return [(root / images, root / masks)], f"{images}/ and {masks}/, without a validation split"
    splits_here = choose_splits(names, spec)
    if splits_here is None:
        if len(names) == 1:
            return _places(root / names[0], f"{spec}/{names[0]}")
        raise UsageError(f"data: {spec} has no folders of images and masks; {HINT}")
    pairs = []
    for split in splits_here[:2]:
        within = sorted(p.name for p in (root / split).iterdir() if p.is_dir())
        images, masks = _one_of(within, IMAGE_FOLDERS, split), _one_of(within, MASK_FOLDERS, split)
        if not images or not masks:
            raise UsageError(f"data: {spec}/{split} has no folders of images and masks; {HINT}")
        pairs.append((root / split / images, root / split / masks))
    return pairs, _layout(f"{images}/ and {masks}/ in each split", splits_here)


def _layout(what: str, splits: Splits) -> str:
    left = f"; not used: {', '.join(splits.left)}" if splits.left else ""
    return f"{what}: trained on {splits.training}, validated on {splits.validation}{left}"


def _one_of(names: Sequence[str], known: Sequence[str], where: str) -> str | None:
    found = [name for name in names if name.lower() in known]
    if len(found) > 1:
        raise UsageError(f"data: {where} has {', '.join(found)}, and it is unclear which to use: keep one")
    return found[0] if found else None


def _pair(images: Path, masks: Path, spec: str) -> tuple[FileImages, FileImages, list[str]]:
    """Pair images and masks by name; return both in the same order, and notes on files without a partner."""
    pictures = {_stem(name, IMAGE_SUFFIXES): name for name in _files(images)}
    drawn: dict[str, str] = {}
    for name in _files(masks):
        drawn.setdefault(_stem(name, ()), name)
    for name in list(drawn.values()):
        drawn.setdefault(_stem(name, SUFFIXES), name)
    both = sorted(stem for stem in pictures if stem in drawn)
    if not both:
        raise UsageError(f"data: no image in {images} has a mask of the same name in {masks}")
    notes = []
    if alone := [pictures[stem] for stem in sorted(pictures.keys() - drawn.keys())]:
        notes.append(f"{counted(len(alone), 'image')} without a mask left out, such as {images / alone[0]}")
    used = {drawn[stem] for stem in both}
    if lone := sorted(set(drawn.values()) - used):
        notes.append(f"{counted(len(lone), 'mask')} without an image left out, such as {masks / lone[0]}")
    return (
        FileImages(str(images), [pictures[stem] for stem in both]),
        FileImages(str(masks), [drawn[stem] for stem in both]),
        notes,
    )


def _files(folder: Path) -> Iterator[str]:
    """Yield the paths of the image files below a folder, relative to it, sorted."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if is_image_name(path.name))
    yield from sorted(str(path) for path in found if not any(is_hidden(part) for part in path.parts))


def _stem(name: str, suffixes: Sequence[str]) -> str:
    """Return a relative path without its extension and without one of the suffixes."""
    stem = str(Path(name).with_suffix(""))
    return next((stem.removesuffix(suffix) for suffix in suffixes if stem.endswith(suffix)), stem)


def _classes(
    root: Path, form: MaskFormat, masks: FileImages, spec: str, is_ade20k: bool
) -> tuple[MaskCode, tuple[str, ...], list[str]]:
    """Find the classes: of a palette, a list, or the values of the masks."""
    notes: list[str] = []
    unlabelled = is_ade20k if form.zero_is_unlabelled is None else form.zero_is_unlabelled
    if form.palette:
        rows = [_colour(row, form.palette) for row in _lines(form.palette, "palette")]
        names = tuple(name for _, name in rows)
        _check_count(names, f"palette: {form.palette}")
        return MaskCode(len(names), colours=tuple(colour for colour, _ in rows)), names, notes
    listed = form.classes or next((str(root / name) for name in CLASS_FILES if (root / name).is_file()), None)
    if listed:
        names = tuple(_lines(listed, "classes"))
        notes.append(f"{len(names)} classes named in {listed}")
    elif (root / ADE20K_CLASSES).is_file():
        table = _lines(str(root / ADE20K_CLASSES), "classes")[1:]
        names = tuple(row.split("\t")[-1].strip() for row in table)
        notes.append(f"{len(names)} classes named in {ADE20K_CLASSES}")
    else:
        names, scanned = _scan(masks, unlabelled, form.ignore_index, spec)
        notes.append(f"{len(names)} classes found in {counted(scanned, 'mask')}, named by their values")
    _check_count(names, f"data: {spec}")
    return MaskCode(len(names), unlabelled, form.ignore_index), names, notes


def _scan(
    masks: FileImages, unlabelled: bool, ignore_index: int | None, spec: str
) -> tuple[tuple[str, ...], int]:
    """Name the classes by the values of the masks, up to the largest one."""
    places = np.unique(np.linspace(0, len(masks) - 1, min(MOST_SCANNED, len(masks))).astype(int))
    largest, scanned, reason = -1, 0, ""
    for place in places:
        try:
            values = read_ids(masks.read(int(place)))
        except (UnreadableImage, OSError) as error:
            reason = reason or str(error)
            continue
        if values.ndim == 3:
            raise UsageError(
                f"palette is missing: {masks.name(int(place))} is a colour image; give --palette FILE"
            )
        if ignore_index is not None:
            values = values[values != ignore_index]
        largest, scanned = max(largest, int(values.max(initial=-1))), scanned + 1
    if not scanned:
        raise UsageError(f"data: {spec}: no mask can be read; the first: {reason}")
    first = 1 if unlabelled else 0
    return tuple(map(str, range(first, largest + 1))), scanned


def _check_count(names: Sequence[str], where: str) -> None:
    if not 1 < len(names) <= MOST_CLASSES:
        raise UsageError(
            f"{where} has {len(names)} classes; 2 to {MOST_CLASSES} are supported. For one class "
            "and a background, name both: values 0 and 1 of the masks"
        )


def _lines(file: str, setting: str) -> list[str]:
    """Return the lines of a text file that are not empty."""
    try:
        text = read_regular(Path(file).expanduser(), 1 << 20).decode()
    except OSError as error:
        raise UsageError(f"{setting}: {file} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{setting}: {file} is not text in UTF-8") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _colour(line: str, file: str) -> tuple[tuple[int, int, int], str]:
    match = COLOUR_LINE.fullmatch(line)
    if not match or max(map(int, match.groups()[:3])) > 255:
        raise UsageError(f"palette: {file}: {line!r} is not R G B NAME, such as 128 64 128 road")
    red, green, blue = (int(number) for number in match.groups()[:3])
    return (red, green, blue), match[4]
