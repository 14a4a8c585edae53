"""Recognise training, validation and test splits by the names of folders, files or tables."""

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Literal, NamedTuple

from fastmim.data.trees import Folder, Tree
from fastmim.errors import UsageError

Role = Literal["training", "validation", "test"]

ROLES: dict[str, Role] = {
    **dict.fromkeys(("train", "training", "trains", "trn", "tra", "learning"), "training"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "development", "eval", "evaluation"), "validation"),
    **dict.fromkeys(("vals", "validate", "holdout", "heldout"), "validation"),
    **dict.fromkeys(("test", "testing", "tests", "tst"), "test"),
    # Chinese, French, German, Portuguese and Spanish words.
    **dict.fromkeys(("训练", "训练集", "entrainement", "entraînement", "trainings"), "training"),
    **dict.fromkeys(("treino", "entrenamiento"), "training"),
    **dict.fromkeys(("验证", "验证集", "validierung", "validação", "validacion", "validación"), "validation"),
    **dict.fromkeys(("测试", "测试集", "teste", "prueba", "pruebas"), "test"),
}
# Other words in the names of splits, which carry no meaning.
FILLERS = frozenset(
    {"set", "sets", "data", "dataset", "daten", "split", "image", "images", "img", "imgs", "photos", "files"}
    | {"batch", "batches", "fold", "folds", "part", "shard", "subset", "class", "classes"}
)
NUMBER = re.compile(r"\d+")
# Numbered folders of these names may be classes even if all contain the same folders. Under other names, such
# as fold1 and fold2, they may be parts of the data.
NUMBERED_CLASSES = re.compile("class|label|categor", re.IGNORECASE)
WORD = re.compile(r"[^\W\d_]+")
CAMEL = re.compile(r"(?<=[^\W\d_A-Z])(?=[A-Z])")
OF_SHARDS = re.compile(r"-\d+-of-\d+(-\w+)?$")


class Named(NamedTuple):
    """Role and remaining words of a name."""

    role: Role | None
    rest: tuple[str, ...]
    """Other words of the name; empty if it only names a split."""


class Splits(NamedTuple):
    """Names of the parts of a data set; ``left`` are the unused ones."""

    training: str
    validation: str
    left: tuple[str, ...]


class Found(NamedTuple):
    """Location of the parts of a data set."""

    place: Folder
    """The folder that holds the splits or, with ``classes_outside``, the classes."""
    splits: Splits
    classes_outside: bool
    """Whether each class folder contains the splits, rather than each split the class folders."""


def read_name(name: str) -> Named:
    """Parse the name of a folder or split, such as ``Train``, ``training_set``, ``ILSVRC2012_img_val``."""
    roles: list[Role] = []
    rest = []
    for word in WORD.findall(CAMEL.sub(" ", name).lower()):
        stems = [word, *(word.removesuffix(filler) for filler in FILLERS)]
        stem = next((stem for stem in stems if stem in ROLES), word)
        if stem in ROLES:
            roles.append(ROLES[stem])
        elif word == "trainval":
            roles.append("training")
        elif word not in FILLERS:
            rest.append(word)
    return Named("training" if "training" in roles else roles[0] if roles else None, tuple(rest))


def choose_splits(names: Iterable[str], where: str) -> Splits | None:
    """Choose the training and the validation split among ``names``; None if no such pair is among them.

    Raises:
        UsageError: several names qualify.
    """
    names = list(names)
    known = {name: read_name(name) for name in names}
    pairs = []
    for rest in dict.fromkeys(said.rest for said in known.values()):
        alike = {name: said.role for name, said in known.items() if said.rest == rest}
        training = _of(alike, "training")
        validation = _of(alike, "validation") or _of(alike, "test")
        if training and validation:
            pairs.append((training, validation))
    if not pairs:
        return None
    trainings, validations = ([name for pair in pairs for name in pair[side]] for side in (0, 1))
    for found, what in ((trainings, "train on"), (validations, "validate on")):
        if len(found) > 1:
            raise UsageError(
                f"data: {where} has {_list(found)}, and it is unclear which of them to {what}: keep one, "
                "or rename the others"
            )
    left = tuple(name for name in names if name not in (trainings[0], validations[0]))
    return Splits(trainings[0], validations[0], left)


def choose_split(names: Collection[str], where: str) -> str:
    """Choose the only split, or else the only training split. Raises UsageError if there is no such split."""
    if len(names) == 1:
        return next(iter(names))
    roles: dict[str, Role | None] = {name: read_name(name).role for name in names if not read_name(name).rest}
    training = _of(roles, "training")
    if len(training) != 1:
        raise UsageError(f"data: {where} has the splits {_list(names)}: give the folder of one of them")
    return training[0]


def find_splits(tree: Tree, where: str) -> Found | None:
    """Find the splits of ``tree``, at its top or below a chain of single folders; None if there are none.

    Raises:
        UsageError: several splits qualify, or a split has no counterpart.
    """
    # Splits at the top, or below a chain of single folders.
    place: Folder = ()
    while True:
        names = tree.folders(place)
        splits = choose_splits(names, "/".join((where, *place)))
        if splits is not None:
            return Found(place, splits, False)
        if len(names) != 1 or tree.has_images(place):
            break
        place = (*place, names[0])
    # A split without a counterpart among other folders.
    at = "/".join((where, *place))
    roles = [name for name in names if read_name(name).role and not read_name(name).rest]
    nested = [name for name in roles if tree.folders((*place, name))]
    if nested or (len(roles) == len(names) > 1):
        alone = nested or roles
        raise UsageError(
            f"data: {at} holds {_list(names)}: {_list(alone)} sounds like a split, not a class, and its "
            f"counterpart is missing: give {tree.advice(at, alone[0])}, or have train and val"
        )
    _refuse_numbered(tree, place, names, at)
    # Splits within each class folder.
    inner = {name: choose_splits(tree.folders((*place, name)), f"{at}/{name}") for name in names}
    found = [name for name, splits in inner.items() if splits]
    if not found:
        return None
    first = inner[found[0]]
    assert first is not None
    deep = any(tree.folders((*place, name, part)) for name in found for part in first[:2])
    if deep or len(found) < len(names) or len({splits and splits[:2] for splits in inner.values()}) > 1:
        raise UsageError(
            f"data: {at} holds {_list(names)}, and {_list(found)} {'have' if len(found) > 1 else 'has'} "
            f"{first.training} and {first.validation} within: give one of them, as "
            f"{tree.advice(at, found[0])}"
        )
    return Found(place, first, True)


def classes_note(tree: Tree) -> str | None:
    """Return a note if all class folders contain the same folders, which could be the classes; else None."""
    place: Folder = ()
    while len(names := tree.folders(place)) == 1 and not tree.has_images(place):
        place = (*place, names[0])
    within = _same_within(tree, place, names)
    if not within:
        return None
    return (
        f"classes are the folders {_list(names)}; each of them has {_list(within)}, whose names are ignored"
    )


def _refuse_numbered(tree: Tree, place: Folder, names: list[str], at: str) -> None:
    """Raise UsageError for numbered folders, such as fold1 and fold2, that all contain the same folders."""
    alike = {NUMBER.sub("#", name).lower() for name in names}
    if len(alike) > 1 or not WORD.search(min(alike, default="")) or NUMBERED_CLASSES.search(min(alike)):
        return
    within = _same_within(tree, place, names)
    if within:
        raise UsageError(
            f"data: {at} holds {_list(names)}, and each of them {_list(within)}: it is unclear which of "
            f"these are the classes: give {tree.advice(at, names[0])}, or have train and val"
        )


def _same_within(tree: Tree, place: Folder, names: list[str]) -> list[str]:
    """Return the two or more folders that every folder in ``place`` contains; empty if they differ."""
    if len(names) < 2 or tree.has_images(place):
        return []
    first = tree.folders((*place, names[0]))
    others = (tree.folders((*place, name)) for name in names[1:])
    return first if len(first) > 1 and all(found == first for found in others) else []


def shards_name(file: Path) -> str:
    """Return a table's file name without its number: ``train`` for train-00000-of-00002-ab12.parquet."""
    return OF_SHARDS.sub("", file.stem).rstrip("0123456789").rstrip("-_. ")


def _of(roles: dict[str, Role | None], role: Role) -> list[str]:
    return [name for name, its in roles.items() if its == role]


def _list(names: Iterable[str], most: int = 6) -> str:
    names = list(names)
    return ", ".join([*names[:most], *(["..."] if len(names) > most else [])])
