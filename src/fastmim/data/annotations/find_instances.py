"""Find images with boxes in the layouts of COCO, Pascal VOC and YOLO, and their splits."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastmim.data.annotations.coco import read_coco
from fastmim.data.annotations.instances import InstanceImages, check_some
from fastmim.data.annotations.mask_pairs import CLASS_FILES
from fastmim.data.annotations.voc import read_voc
from fastmim.data.annotations.yolo import read_yolo
from fastmim.data.seeds import LABEL_SEED
from fastmim.data.sources.files import find_path
from fastmim.data.sources.index import is_hidden, is_image_name
from fastmim.data.splits import choose_splits, read_name
from fastmim.errors import UsageError
from fastmim.system.documents import read_yaml

HINT = (
    "give a folder in the layout of COCO (annotations/*.json beside the images), Pascal VOC (XML) or YOLO "
    "(images/ and labels/)"
)
COCO_NAME = re.compile(r"(?:instances_)?(.+)")


class Found(NamedTuple):
    """Training and validation parts, not read yet."""

    layout: str
    training: Callable[[], InstanceImages]
    validation: Callable[[InstanceImages], InstanceImages] | None
    """Reads the validation part with the classes of the training part."""


def open_instances(
    spec: str,
    annotations: tuple[str, ...],
    images: tuple[str, ...],
    val_share: float,
    seed: int,
) -> tuple[InstanceImages, InstanceImages]:
    """Open images with boxes as a pair (training, validation).

    Args:
        spec: a folder in one of the layouts.
        annotations: JSON files in COCO's format, below ``spec``: one, or those of training and validation.
            Default: found by name.
        images: folders of their images, below ``spec``.
        val_share: share of the images that is held out for validation if there is no such split.
        seed: seed of that split.

    Raises:
        UsageError: there are no such files, or it is unclear which of them are meant.
    """
    root = find_path(spec)
    if not root.is_dir():
        raise UsageError(f"data: {spec} is a file; {HINT}")
    found = _named(root, annotations, images) if annotations else _recognised(root, spec)
    training = found.training()
    notes = (found.layout, *training.notes)
    if found.validation is not None:
        validation = found.validation(training)
        notes += tuple(f"validation: {note}" for note in validation.notes if note not in training.notes)
    else:
        count = len(training)
        if count < 2:
            raise UsageError(f"data: {spec} has one image; two are needed, one for validation")
        order = np.random.default_rng([LABEL_SEED, seed]).permutation(count)
        held_out = min(max(1, round(val_share * count)), count - 1)
        validation = training.take(np.sort(order[:held_out]))
        training = training.take(np.sort(order[held_out:]))
    check_some(training, spec, "training")
    check_some(validation, spec, "validation")
    return replace(training, notes=notes), validation


def _named(root: Path, annotations: tuple[str, ...], images: tuple[str, ...]) -> Found:
    """Return the parts that the user named."""
    if len(annotations) > 2 or len(images) not in (1, len(annotations)):
        raise UsageError(
            f"annotations = {', '.join(annotations)}: one or two files are needed, training and validation, "
            f"and --images with a folder for each or one for all; there are {len(images)}"
        )
    files = [root / name for name in annotations]
    folders = [root / name for name in (images if len(images) == len(files) else images * len(files))]
    for setting, path, there in (
        *(("annotations", file, file.is_file()) for file in files),
        *(("images", folder, folder.is_dir()) for folder in folders),
    ):
        if not there:
            raise UsageError(f"{setting}: {path} does not exist")
    return _coco("COCO's JSON", files, folders)


def _recognised(root: Path, spec: str) -> Found:
    """Recognise the layout by the files."""
    jsons = sorted((root / "annotations").glob("*.json")) or sorted(root.glob("*.json"))
    jsons = [file for file in jsons if not is_hidden(file.name)]
    if jsons:
        return _coco_by_name(root, jsons, spec)
    if any(root.rglob("*.xml")):
        return _voc(root, spec)
    if (root / "labels").is_dir() or any(root.glob("*/labels")):
        return _yolo(root, spec)
    raise UsageError(f"data: {spec} has no annotations; {HINT}")


def _coco(layout: str, files: list[Path], folders: list[Path]) -> Found:
    def validate(training: InstanceImages) -> InstanceImages:
        return read_coco(files[1], folders[1], training.category_ids)

    return Found(layout, partial(read_coco, files[0], folders[0]), validate if len(files) > 1 else None)


def _coco_by_name(root: Path, jsons: list[Path], spec: str) -> Found:
    """Choose the JSON files of training and validation, and the folders of their images, by name."""
    instances = [file for file in jsons if file.stem.startswith("instances_")]
    known = {_split_of(file): file for file in instances or jsons}
    if len(known) == 1:
        ((name, file),) = known.items()
        return _coco(
            f"COCO's layout: {file.name}, without a validation split", [file], [_images_of(root, name, spec)]
        )
    splits = choose_splits(known, spec)
    if splits is None:
        raise UsageError(
            f"data: {spec} has {', '.join(file.name for file in known.values())}: name those of training and "
            "validation with --annotations, and --images"
        )
    names = (splits.training, splits.validation)
    layout = f"COCO's layout: trained on {known[names[0]].name}, validated on {known[names[1]].name}"
    return _coco(layout, [known[name] for name in names], [_images_of(root, name, spec) for name in names])


def _split_of(file: Path) -> str:
    match = COCO_NAME.fullmatch(file.stem)
    assert match
    return match[1] if match[1] != "_annotations.coco" else file.parent.name


def _images_of(root: Path, split: str, spec: str) -> Path:
    """Return the folder of a split's images: its own, images/ or the data itself."""
    role = read_name(split).role
    folders = [path for path in (*root.iterdir(), *root.glob("images/*")) if path.is_dir()]
    for path in folders:
        if path.name == split:
            return path
    alike = [path for path in folders if role and read_name(path.name).role == role]
    if len(alike) == 1:
        return alike[0]
    return root / "images" if (root / "images").is_dir() else root


def _voc(root: Path, spec: str) -> Found:
    """Pair images with XML files of the same name; splits are lists in ImageSets/Main, or folders."""
    while len(inner := [p for p in root.iterdir() if p.is_dir()]) == 1 and not any(root.glob("*.xml")):
        root = inner[0]
    lists = {file.stem: file for file in sorted(root.glob("ImageSets/Main/*.txt")) if "_" not in file.stem}
    pairs = _pairs(root, ".xml")
    paired = [(name, file) for name, file in pairs if file is not None]
    if not paired:
        raise UsageError(f"data: {spec}: no XML file has the name of an image; {HINT}")
    splits = choose_splits([name for name in lists if name != "trainval"], spec) if lists else None
    if splits is not None:
        wanted = [set(lists[name].read_text().split()) for name in splits[:2]]
        parts = [[pair for pair in paired if Path(pair[0]).stem in names] for names in wanted]
    else:
        splits = choose_splits({Path(name).parts[0] for name, _ in paired if len(Path(name).parts) > 1}, spec)
        if splits is None:
            return Found(
                "Pascal VOC's XML, without a validation split", partial(read_voc, paired, root), None
            )
        parts = [[pair for pair in paired if Path(pair[0]).parts[0] == name] for name in splits[:2]]
    layout = f"Pascal VOC's XML: trained on {splits.training}, validated on {splits.validation}"
    return Found(
        layout, partial(read_voc, parts[0], root), lambda train: read_voc(parts[1], root, train.classes)
    )


def _yolo(root: Path, spec: str) -> Found:
    """Pair images with text files in labels/ beside images/."""
    classes = _yolo_classes(root, spec)
    pairs = [
        (name, file)
        for name, file in _pairs(root, ".txt", {"images": "labels"})
        if "images" in Path(name).parts
    ]
    if not any(file for _, file in pairs):
        raise UsageError(f"data: {spec}: no file in labels/ has the name of an image in images/")
    folders = {part for name, _ in pairs for part in Path(name).parts[:-1] if part != "images"}
    splits = choose_splits(folders, spec)
    if splits is None:
        return Found(
            "YOLO's layout, without a validation split", partial(read_yolo, pairs, root, classes), None
        )
    parts = [[pair for pair in pairs if name in Path(pair[0]).parts[:-1]] for name in splits[:2]]
    layout = f"YOLO's layout: trained on {splits.training}, validated on {splits.validation}"
    return Found(
        layout, partial(read_yolo, parts[0], root, classes), lambda _: read_yolo(parts[1], root, classes)
    )


def _yolo_classes(root: Path, spec: str) -> tuple[str, ...]:
    """Return the classes of data.yaml, or of a list."""
    for file in sorted((*root.glob("*.yaml"), *root.glob("*.yml"))):
        names: Any = read_yaml(file).get("names")
        if isinstance(names, Mapping):
            names = [names[number] for number in sorted(names)]
        if isinstance(names, list) and names:
            return tuple(map(str, names))
    for name in (*CLASS_FILES, "labels/classes.txt", "obj.names"):
        if (root / name).is_file():
            return tuple(line.strip() for line in (root / name).read_text().splitlines() if line.strip())
    raise UsageError(f"data: {spec} has no data.yaml with names, and no {CLASS_FILES[0]}")


def _pairs(
    root: Path, suffix: str, moved: Mapping[str, str] | None = None
) -> Iterator[tuple[str, Path | None]]:
    """Yield each image's path below ``root``, and the annotation: of the same name, beside it or elsewhere.

    Args:
        moved: folder of images -> folder of annotations in its place; None: any folder.
    """
    files = sorted(path for path in root.rglob("*") if path.is_file() and not is_hidden(path.name))
    by_stem: dict[str, list[Path]] = {}
    for file in files:
        if file.suffix.lower() == suffix:
            by_stem.setdefault(file.stem, []).append(file)
    for file in files:
        if not is_image_name(file.name):
            continue
        name = file.relative_to(root)
        found: Path | None
        if moved is not None:
            parts = [moved.get(part, part) for part in name.parts]
            found = root.joinpath(*parts).with_suffix(suffix)
            found = found if found.is_file() else None
        else:
            same = by_stem.get(file.stem, [])
            beside = [path for path in same if path.parent == file.parent]
            found = next(iter(beside or same), None)
        yield str(name), found
