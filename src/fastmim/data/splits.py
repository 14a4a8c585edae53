"""Which folders, files or tables are for training and which to measure on, by their names."""

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
    # As Chinese, French, German, Portuguese and Spanish have it.
    **dict.fromkeys(("训练", "训练集", "entrainement", "entraînement", "trainings"), "training"),
    **dict.fromkeys(("treino", "entrenamiento"), "training"),
    **dict.fromkeys(("验证", "验证集", "validierung", "validação", "validacion", "validación"), "validation"),
    **dict.fromkeys(("测试", "测试集", "teste", "prueba", "pruebas"), "test"),
}
# Words that a split's name may have besides, which say nothing.
FILLERS = frozenset(
    {"set", "sets", "data", "dataset", "daten", "split", "image", "images", "img", "imgs", "photos", "files"}
    | {"batch", "batches", "fold", "folds", "part", "shard", "subset", "class", "classes"}
)
NUMBER = re.compile(r"\d+")
# What is numbered and may have the same folders within: anything else that is may be a part of the data.
NUMBERED_CLASSES = re.compile("class|label|categor", re.IGNORECASE)
WORD = re.compile(r"[^\W\d_]+")
CAMEL = re.compile(r"(?<=[^\W\d_A-Z])(?=[A-Z])")
OF_SHARDS = re.compile(r"-\d+-of-\d+(-\w+)?$")


class Named(NamedTuple):
    """What a name says."""

    role: Role | None
    rest: tuple[str, ...]
    """Its other words; empty of one that only names a split."""


class Splits(NamedTuple):
    """Names of the parts of some data."""

    training: str
    validation: str
    left: tuple[str, ...]


class Found(NamedTuple):
    """Where the parts of some data lie."""

    place: Folder
    """The folder that holds them; of data with the classes outside, that holds the classes."""
    splits: Splits
    classes_outside: bool
    """A folder a class, and in each the splits."""


def read_name(name: str) -> Named:
    """What a folder's or a split's name says: ``Train``, ``training_set``, ``ILSVRC2012_img_val``."""
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
    """What is trained on and what is measured on; None where the names are not those of splits.

    Raises:
        UsageError: which of them is meant is open.
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
    for found, what in ((trainings, "train on"), (validations, "measure on")):
        if len(found) > 1:
            raise UsageError(
                f"data: {where} has {_list(found)}, and which of them to {what} is open: leave one, or "
                "rename the others"
            )
    left = tuple(name for name in names if name not in (trainings[0], validations[0]))
    return Splits(trainings[0], validations[0], left)


def choose_split(names: Collection[str], where: str) -> str:
    """The one split to train on without classes. Raises UsageError where it is open."""
    if len(names) == 1:
        return next(iter(names))
    roles: dict[str, Role | None] = {name: read_name(name).role for name in names if not read_name(name).rest}
    training = _of(roles, "training")
    if len(training) != 1:
        raise UsageError(f"data: {where} has the splits {_list(names)}: give the folder of one of them")
    return training[0]


def find_splits(tree: Tree, where: str) -> Found | None:
    """The splits below the top of ``tree``, in as many more folders as there are; None where it has none.

    Raises:
        UsageError: there are several, or only one of two.
    """
    place: Folder = ()
    while True:
        names = tree.folders(place)
        splits = choose_splits(names, "/".join((where, *place)))
        if splits is not None:
            return Found(place, splits, False)
        if len(names) != 1 or tree.has_images(place):
            break
        place = (*place, names[0])
    at = "/".join((where, *place))
    roles = [name for name in names if read_name(name).role and not read_name(name).rest]
    nested = [name for name in roles if tree.folders((*place, name))]
    if nested or (len(roles) == len(names) > 1):
        alone = nested or roles
        raise UsageError(
            f"data: {at} holds {_list(names)}: {_list(alone)} sounds like a split, not like a class, and "
            f"there is none to go with it: give {tree.advice(at, alone[0])}, or have train and val"
        )
    _refuse_numbered(tree, place, names, at)
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
    """What is to be said of classes that have the same folders within, which could as well be the classes."""
    place: Folder = ()
    while len(names := tree.folders(place)) == 1 and not tree.has_images(place):
        place = (*place, names[0])
    within = _same_within(tree, place, names)
    if not within:
        return None
    return (
        f"classes are the folders {_list(names)}; each of them has {_list(within)}, which are not told apart"
    )


def _refuse_numbered(tree: Tree, place: Folder, names: list[str], at: str) -> None:
    """Raises UsageError for fold1, fold2 and the like, each with the same folders within."""
    alike = {NUMBER.sub("#", name).lower() for name in names}
    if len(alike) > 1 or not WORD.search(min(alike, default="")) or NUMBERED_CLASSES.search(min(alike)):
        return
    within = _same_within(tree, place, names)
    if within:
        raise UsageError(
            f"data: {at} holds {_list(names)}, and each of them {_list(within)}: which of these are the "
            f"classes is open: give {tree.advice(at, names[0])}, or have train and val"
        )


def _same_within(tree: Tree, place: Folder, names: list[str]) -> list[str]:
    """The folders, two or more, that each of the folders in ``place`` has; none where they differ."""
    if len(names) < 2 or tree.has_images(place):
        return []
    first = tree.folders((*place, names[0]))
    others = (tree.folders((*place, name)) for name in names[1:])
    return first if len(first) > 1 and all(found == first for found in others) else []


def shards_name(file: Path) -> str:
    """A table's file name without its number, as ``train`` of train-00000-of-00002-ab12.parquet."""
    return OF_SHARDS.sub("", file.stem).rstrip("0123456789").rstrip("-_. ")


def _of(roles: dict[str, Role | None], role: Role) -> list[str]:
    return [name for name, its in roles.items() if its == role]


def _list(names: Iterable[str], most: int = 6) -> str:
    names = list(names)
    return ", ".join([*names[:most], *(["..."] if len(names) > most else [])])
