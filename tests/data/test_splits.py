"""Splits by name: training and measuring parts are never taken for classes."""

import tarfile

import datasets
import numpy as np
import pytest
from PIL import Image

from conftest import photo
from fastmim.data.labelled import class_names, open_labelled
from fastmim.data.packing.pack import pack
from fastmim.data.parts import splits_note
from fastmim.data.sources.base import notes_of
from fastmim.data.sources.open import open_images
from fastmim.data.splits import choose_splits, read_name
from fastmim.errors import UsageError

NAMES = {
    "training": "train Train TRAIN training training_set TrainingSet train2017 trainset imgs_train trainval "
    "Trainingsdaten entrenamiento train_part1 训练集",
    "validation": "val Val valid validation dev dev_set valset VAL2014 eval Validation-Set validate 验证集",
    "test": "test Test testing test_set TestData test_batch tests 测试集",
}


@pytest.mark.parametrize(("role", "name"), [(role, name) for role in NAMES for name in NAMES[role].split()])
def test_names_of_splits(role, name):
    assert read_name(name) == (role, ())


@pytest.mark.parametrize("name", ["cat", "trainer", "bullet train", "n01440764", "0", "contest", "value"])
def test_names_of_classes(name):
    said = read_name(name)
    assert said.role is None or said.rest


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (["Train", "Val"], ("Train", "Val", ())),
        (["training_set", "test_set"], ("training_set", "test_set", ())),
        (["dev", "test", "train"], ("train", "dev", ("test",))),
        (["train2017", "val2017", "unlabeled2017"], ("train2017", "val2017", ("unlabeled2017",))),
        (["imagenet_train", "imagenet_val"], ("imagenet_train", "imagenet_val", ())),
        (["bus", "car", "train"], None),
        (["cat", "dog"], None),
        (["test", "val"], None),
        ([], None),
    ],
)
def test_what_is_taken_of_some_names(names, taken):
    assert choose_splits(names, "data") == taken


@pytest.mark.parametrize(
    "names",
    [["train2014", "train2017", "val2017"], ["train", "val", "valid"], ["a_train", "a_val", "train", "val"]],
)
def test_what_is_open_is_refused_with_the_choices(names):
    with pytest.raises(UsageError, match=f"{names[-2]}.* is unclear"):
        choose_splits(names, "data")


def make(root, tree):
    for number, (name, count) in enumerate(tree.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for image in range(count):
            Image.fromarray(photo(100 * number + image, 8, 8)).save(root / name / f"{number}_{image}.png")
    return root


def as_tar(root, place):
    with tarfile.open(place / "data.tar", "w") as tar:
        tar.add(root, "data")
    return place / "data.tar"


def as_pack(root, place):
    pack(str(root), place / "packed", 8, encoding="raw")
    return place / "packed"


LAYOUTS = {
    "plain": ("train", "val", ""),
    "capitals": ("Train", "Val", ""),
    "sets": ("training_set", "test_set", ""),
    "dev": ("train", "dev", ""),
    "years": ("train2017", "val2017", ""),
    "words": ("Training Images", "validation", ""),
    "a folder more": ("train", "val", "NAME"),
    "two folders more": ("Train", "Test", "a/b"),
}


@pytest.mark.parametrize("form", [None, as_tar, as_pack], ids=["folder", "tar", "pack"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_two_splits_are_split_and_their_folders_classes(tmp_path, layout, form):
    first, second, above = layout
    counts = {"cat": (4, 1), "dog": (3, 2), "cow": (2, 1)}
    tree = {
        f"{split}/{name}": counts[name][side] for side, split in enumerate((first, second)) for name in counts
    }
    root = make(tmp_path / "data" / above, tree)
    top = tmp_path / "data"
    spec = str(top if form is None else form(top, tmp_path))
    training, validation = open_labelled(spec, 0.2, 0)
    assert training.classes == validation.classes == ("cat", "cow", "dog")
    assert training.per_class.tolist() == [4, 2, 3]
    assert validation.per_class.tolist() == [1, 1, 2]
    for data, split in ((training, first), (validation, second)):
        for index, label in zip(data.indices, data.labels, strict=True):
            (file,) = root.rglob(data.source.name(int(index)).rpartition("/")[2])
            assert file.parent.name == data.classes[label]
            assert file.parent.parent.name == split
    assert any(first in note and second in note for note in training.notes)
    names = class_names(spec, open_images(spec))
    assert sorted(names) == ["cat"] * 5 + ["cow"] * 3 + ["dog"] * 5


@pytest.mark.parametrize("form", [None, as_tar], ids=["folder", "tar"])
def test_splits_within_each_class(tmp_path, form):
    tree = {
        f"{name}/{split}": count for name in ("cat", "dog") for split, count in (("train", 3), ("test", 2))
    }
    root = make(tmp_path / "data", tree)
    spec = str(root if form is None else form(root, tmp_path))
    training, validation = open_labelled(spec, 0.2, 0)
    assert training.classes == ("cat", "dog")
    assert (len(training), len(validation)) == (6, 4)
    assert not {training.source.name(i) for i in range(6)} & {validation.source.name(i) for i in range(4)}


@pytest.mark.parametrize("form", [None, as_tar], ids=["folder", "tar"])
@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"val/cat": 2, "test/cat": 2}, "test, val"),
        ({"train/cat": 2, "train/dog": 2, "unlabeled": 3}, "train, unlabeled"),
        ({"val": 2, "test": 2}, "sounds like a split"),
        ({"a/train/x": 2, "a/val/x": 2, "b/train/x": 2, "b/val/x": 2}, "give one of them"),
        ({"a/train/x": 2, "a/val/x": 2, "b/x": 2}, "give one of them"),
        ({"train/cat": 2, "Train/cat": 2, "val/cat": 2}, "it is unclear which of them to train on"),
        (
            {f"fold{n}/{name}": 2 for n in range(1, 6) for name in ("cat", "dog")},
            "fold1, fold2.* each of them cat, dog",
        ),
        ({f"part_0{n}/{name}": 2 for n in range(2) for name in ("cat", "dog")}, "part_00, part_01"),
        (
            {f"{n}/{name}": 2 for n in ("data_batch_1", "test_batch") for name in "ab"},
            "test_batch sounds like",
        ),
        ({"train_part1/a": 2, "train_part2/a": 2, "val/a": 2}, "it is unclear which of them to train on"),
    ],
)
def test_what_is_open_in_a_folder_is_refused(tmp_path, tree, said, form):
    root = make(tmp_path / "data", tree)
    with pytest.raises(UsageError, match=said):
        open_labelled(str(root if form is None else form(root, tmp_path)), 0.2, 0)


@pytest.mark.parametrize("form", [None, as_tar], ids=["folder", "tar"])
@pytest.mark.parametrize(
    ("tree", "classes", "note"),
    [
        (
            {f"class{n}/{a}": 2 for n in (1, 2) for a in ("day", "night")},
            ("class1", "class2"),
            "has day, night",
        ),
        ({f"{n}/{a}": 2 for n in (7, 10) for a in ("day", "night")}, ("7", "10"), "has day, night"),
        ({f"{n}/{a}": 2 for n in ("cat", "dog") for a in "ab"}, ("cat", "dog"), "whose names are ignored"),
        ({f"{n}/images": 2 for n in ("cat", "dog")}, ("cat", "dog"), ""),
        ({"cat/a": 2, "cat/b": 2, "dog/a": 2}, ("cat", "dog"), ""),
        ({"fold1/cat": 2, "fold2/dog": 2}, ("fold1", "fold2"), ""),
    ],
)
def test_folders_within_classes(tmp_path, tree, classes, note, form):
    root = make(tmp_path / "data", tree)
    training, _ = open_labelled(str(root if form is None else form(root, tmp_path)), 0.25, 0)
    assert training.classes == classes
    assert note in " ".join(training.notes)
    assert bool(note) == bool(training.notes)


def test_advice_can_be_followed(tmp_path):
    """Of a folder its path is named, of a tar, which has no paths, that one is needed of it alone."""
    root = make(tmp_path / "data", {"train/cat": 2, "train/dog": 2, "other": 3})
    with pytest.raises(UsageError, match=f"give {root}/train,"):
        open_labelled(str(root), 0.2, 0)
    assert open_labelled(f"{root}/train", 0.5, 0)[0].classes == ("cat", "dog")
    with pytest.raises(UsageError, match="give a tar or pack of train alone,"):
        open_labelled(str(as_tar(root, tmp_path)), 0.2, 0)


@pytest.mark.parametrize("form", [None, as_tar], ids=["folder", "tar"])
def test_images_beside_splits_are_said_to_be_left(tmp_path, form):
    root = make(tmp_path / "data", {"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 1, "": 2})
    training, validation = open_labelled(str(root if form is None else form(root, tmp_path)), 0.2, 0)
    assert (len(training), len(validation)) == (4, 2)
    assert "not used: " in training.notes[0]


@pytest.mark.parametrize("form", [None, as_tar, as_pack], ids=["folder", "tar", "pack"])
def test_without_labels_all_splits_are_taken_and_said(tmp_path, form):
    tree = {f"NAME/{split}/{name}": 2 for split in ("Train", "Val", "extra") for name in "ab"}
    root = make(tmp_path / "data", tree)
    spec = str(root if form is None else form(root, tmp_path))
    source = open_images(spec)
    assert len(source) == 12
    note = splits_note(spec, source)
    assert note.startswith("all images of Train/, Val/, extra/ are used")
    assert (str(root / "NAME" / "Train") in note) == (form is None)
    plain = str(root / "NAME" / "Train")
    assert splits_note(plain, open_images(plain)) is None
    assert splits_note("demo:digits", open_images("demo:digits")) is None


def test_what_is_left_out_of_either_split_is_said(tmp_path):
    root = make(tmp_path, {"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 1})
    (root / "train" / "a" / "x.heic").write_bytes(b"-")
    (root / "val" / "a" / "y.cr2").write_bytes(b"-")
    said = " ".join(open_labelled(str(root), 0.2, 0)[0].notes)
    assert ".heic (1)" in said
    assert "validation: 1 file of another kind was left out: .cr2 (1)" in said


def test_a_class_may_be_called_train(tmp_path):
    make(tmp_path / "flat", {"bus": 4, "car": 4, "train": 4})
    assert open_labelled(str(tmp_path / "flat"), 0.25, 0)[0].classes == ("bus", "car", "train")
    tree = {f"{split}/{name}": 2 for split in ("train", "val") for name in ("bus", "train", "val")}
    training, validation = open_labelled(str(make(tmp_path / "deep", tree)), 0.25, 0)
    assert training.classes == validation.classes == ("bus", "train", "val")


def test_what_is_left_of_a_folder_is_named(tmp_path):
    tree = {"images/train/a": 2, "images/train/b": 2, "images/val/a": 1, "images/val/b": 1, "images/test": 3}
    root = make(tmp_path / "data", tree)
    (root / "labels" / "train").mkdir(parents=True)
    (root / "labels" / "train" / "0.txt").write_text("0 0 0 1 1")
    training, validation = open_labelled(str(root), 0.2, 0)
    assert (len(training), len(validation)) == (4, 2)
    assert "not used: test/" in training.notes[0]


def table(count):
    values = {
        "image": [Image.fromarray(photo(n, 8, 8)) for n in range(count)],
        "label": [0, 1] * (count // 2),
    }
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    return datasets.Dataset.from_dict(values, features=features)


@pytest.mark.parametrize(
    "names",
    [
        ("Train.parquet", "Val.parquet"),
        ("train-00000-of-00001.parquet", "dev-00000-of-00001-ab12.parquet"),
        ("data/training_set/0.parquet", "data/test_set/0.parquet"),
    ],
)
def test_parquet_files_that_are_named_after_splits(tmp_path, names):
    for name, count in zip(names, (6, 4), strict=True):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        table(count).to_parquet(str(tmp_path / name))
    for hidden in ("._Train.parquet", ".cache/val.parquet", "__MACOSX/train.parquet"):
        (tmp_path / hidden).parent.mkdir(exist_ok=True)
        (tmp_path / hidden).write_bytes(b"no table")
    training, validation = open_labelled(str(tmp_path), 0.2, 0)
    assert (len(training), len(validation)) == (6, 4)
    source = open_images(str(tmp_path))
    assert len(source) == 10
    assert "all images of" in splits_note(str(tmp_path), source)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("part-0.parquet", "part-1.parquet"), ""),
        (("train.parquet", "extra.parquet"), "the tables extra, train are read as one"),
    ],
)
def test_tables_that_are_no_splits_are_taken_as_one(tmp_path, names, said):
    for name in names:
        table(4).to_parquet(str(tmp_path / name))
    training, validation = open_labelled(str(tmp_path), 0.25, 0)
    assert len(training) + len(validation) == 8
    assert " ".join(training.notes) == said


@pytest.mark.parametrize(
    ("splits", "counts", "left"),
    [
        ({"Train": 6, "Val": 4}, (6, 4), ""),
        ({"training_set": 6, "test_set": 4}, (6, 4), ""),
        ({"train": 6, "dev": 4, "test": 2}, (6, 4), "not used: test"),
        ({"train": 8, "unlabeled": 2}, (6, 2), "not used: unlabeled"),
    ],
)
def test_saved_splits(tmp_path, splits, counts, left):
    whole = datasets.DatasetDict({name: table(count) for name, count in splits.items()})
    whole.save_to_disk(str(tmp_path / "saved"))
    training, validation = open_labelled(str(tmp_path / "saved"), 0.25, 0)
    assert (len(training), len(validation)) == counts
    assert left in " ".join(training.notes)
    source = open_images(str(tmp_path / "saved"))
    assert len(source) == next(iter(splits.values()))
    assert "not used: " in notes_of(source)[0]


def test_saved_splits_of_which_none_is_known_are_refused(tmp_path):
    datasets.DatasetDict({"a": table(2), "b": table(2)}).save_to_disk(str(tmp_path / "saved"))
    for function in (open_images, lambda spec: open_labelled(spec, 0.2, 0)):
        with pytest.raises(UsageError, match="the splits a, b"):
            function(str(tmp_path / "saved"))
    assert len(open_images(str(tmp_path / "saved" / "a"))) == 2


def test_images_of_a_split_lie_where_they_lay(tmp_path):
    """A plain layout is read as it was: each split is a folder of files, in sorted order."""
    root = make(tmp_path, {"train/b": 2, "train/a": 2, "val/a": 1, "val/b": 1})
    training, validation = open_labelled(str(root), 0.2, 0)
    for data, split in ((training, "train"), (validation, "val")):
        names = [data.source.name(i) for i in range(len(data.source))]
        assert names == sorted(str(p.relative_to(root / split)) for p in (root / split).rglob("*.png"))
        assert np.array_equal(data.indices, np.arange(len(names)))
