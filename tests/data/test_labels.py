"""Classes of images: where they come from, how few of them are taken, and what is kept to measure on."""

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from conftest import photo
from fastmim.data.labelled import Labelled, class_names, few_labels, imbalance, open_labelled, split_classes
from fastmim.data.settings import parse_labels
from fastmim.data.sources.base import ArrayImages
from fastmim.data.sources.open import open_images
from fastmim.errors import UsageError


def labelled(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    source = ArrayImages(np.zeros((len(labels), 4, 4, 3), np.uint8), "image")
    return Labelled(source, np.arange(len(labels)), labels, tuple(f"c{n}" for n in range(len(counts))))


def folder(root, tree):
    for name, count in tree.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.fromarray(photo(number, 12, 12)).save(root / name / f"{number}.png")
    return root


def test_a_folder_of_train_and_val_keeps_its_split(tmp_path):
    folder(tmp_path, {"train/cat": 3, "train/dog": 2, "val/cat": 1, "val/dog": 2})
    training, validation = open_labelled(str(tmp_path), 0.5, 0)
    assert (training.classes, validation.classes) == (("cat", "dog"), ("cat", "dog"))
    assert training.per_class.tolist() == [3, 2]
    assert validation.per_class.tolist() == [1, 2]
    for data in (training, validation):
        for index, label in zip(data.indices, data.labels, strict=True):
            assert data.source.name(int(index)).startswith(data.classes[label])


def test_one_folder_is_split_by_the_seed_within_each_class(tmp_path):
    folder(tmp_path, {"2": 10, "10": 5})
    training, validation = open_labelled(str(tmp_path), 0.2, 7)
    assert training.classes == ("2", "10")  # numbers by value
    assert validation.per_class.tolist() == [2, 1]
    assert not set(training.indices) & set(validation.indices)
    again = open_labelled(str(tmp_path), 0.2, 7)[1]
    other = open_labelled(str(tmp_path), 0.2, 8)[1]
    assert np.array_equal(again.indices, validation.indices)
    assert not np.array_equal(other.indices, validation.indices)


def test_a_class_that_only_validation_has_is_refused(tmp_path):
    folder(tmp_path, {"train/cat": 2, "train/dog": 2, "val/cow": 1})
    with pytest.raises(UsageError, match="1 images of class 'cow'"):
        open_labelled(str(tmp_path), 0.2, 0)


@pytest.mark.parametrize("column", ["label", "class"])
def test_parquet_and_saved_datasets_say_their_classes(tmp_path, column):
    values = {"image": [Image.fromarray(photo(n, 8, 8)) for n in range(8)], column: [0, 1] * 4}
    table = datasets.Dataset.from_dict(values).cast_column("image", datasets.Image())
    if column == "label":
        table = table.cast_column("label", datasets.ClassLabel(names=["no", "yes"]))
    table.to_parquet(str(tmp_path / "all.parquet"))
    training, validation = open_labelled(str(tmp_path / "all.parquet"), 0.25, 0)
    assert training.classes == (("no", "yes") if column == "label" else ("0", "1"))
    assert (len(training), len(validation)) == (6, 2)
    datasets.DatasetDict({"train": table, "test": table.select(range(2))}).save_to_disk(str(tmp_path / "d"))
    training, validation = open_labelled(str(tmp_path / "d"), 0.25, 0)
    assert (len(training), len(validation)) == (8, 2)


def test_a_table_without_classes_names_its_columns(tmp_path):
    table = datasets.Dataset.from_dict({"image": [Image.fromarray(photo(0, 8, 8))], "caption": ["x"]})
    table.to_parquet(str(tmp_path / "all.parquet"))
    with pytest.raises(UsageError, match="caption"):
        open_labelled(str(tmp_path / "all.parquet"), 0.2, 0)


def test_the_digits_have_ten_classes():
    training, validation = open_labelled("demo:digits", 0.2, 0)
    assert training.classes == tuple(map(str, range(10)))
    assert len(training) + len(validation) == 1797
    assert imbalance(training) is None
    assert class_names("demo:digits", training.source)[:3] == ["0", "1", "2"]


def test_unequal_classes_are_told():
    assert "c1 has 40 images, c0 5" in imbalance(labelled([5, 40]))


@given(
    counts=st.lists(st.integers(2, 30), min_size=2, max_size=5),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 5),
)
def test_shares_hold_for_each_class(counts, share, seed):
    data = labelled(counts)
    few = few_labels(data, str(share), seed)
    assert few.per_class.tolist() == [max(1, round(float(str(share)) * count)) for count in counts]
    training, validation = split_classes(data, share, seed, "data")
    assert (training.per_class >= 1).all()
    assert (validation.per_class >= 1).all()
    assert sorted([*training.indices, *validation.indices]) == list(range(len(data)))
    assert (data.by_index()[few.indices] == few.labels).all()


def test_few_labels_take_a_number_of_each_class():
    few = few_labels(labelled([9, 4]), "3/class", 0)
    assert few.per_class.tolist() == [3, 3]
    assert len(few_labels(labelled([9, 4]), None, 0)) == 13
    with pytest.raises(UsageError, match="'c1' has only 4"):
        few_labels(labelled([9, 4]), "5/class", 0)


@pytest.mark.parametrize("wanted", ["0", "1.5", "many", "0/class", "-0.1", "nan"])
def test_other_ways_to_say_it_are_refused(wanted):
    with pytest.raises(UsageError, match="10/class"):
        parse_labels(wanted)


def test_a_test_split_without_classes_does_no_harm(tmp_path):
    folder(tmp_path, {"train/cat": 2, "train/dog": 2, "val/cat": 1, "val/dog": 1, "test": 3})
    training, validation = open_labelled(str(tmp_path), 0.2, 0)
    assert (len(training), len(validation)) == (4, 2)
    values = {"image": [Image.fromarray(photo(n, 8, 8)) for n in range(4)], "label": [0, 1, 0, 1]}
    table = datasets.Dataset.from_dict(values).cast_column("image", datasets.Image())
    table = table.cast_column("label", datasets.ClassLabel(names=["no", "yes"]))
    secret = table.remove_columns("label").add_column("label", [-1] * 4)
    secret = secret.cast_column("label", datasets.ClassLabel(names=["no", "yes"]))
    splits = {"train": table, "validation": table, "test": secret}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    assert len(open_labelled(str(tmp_path / "saved"), 0.2, 0)[1]) == 4
    datasets.DatasetDict({"train": table, "test": secret}).save_to_disk(str(tmp_path / "two"))
    with pytest.raises(UsageError, match="row 0 has no value in column 'label'"):
        open_labelled(str(tmp_path / "two"), 0.2, 0)


def test_names_of_classes_skip_the_split_and_come_with_tables(tmp_path):
    root = folder(tmp_path / "f", {"train/cat": 2, "train/dog": 2, "val/cat": 1})
    assert class_names(str(root), open_images(str(root))) == ["cat", "cat", "dog", "dog", "cat"]
    flat = folder(tmp_path / "flat", {"": 2})
    assert class_names(str(flat), open_images(str(flat))) is None
    table = datasets.Dataset.from_dict(
        {"image": [Image.fromarray(photo(0, 8, 8))], "label": ["x"], "caption": ["y"]}
    )
    table.cast_column("image", datasets.Image()).to_parquet(str(tmp_path / "t.parquet"))
    assert class_names("t", open_images(str(tmp_path / "t.parquet"))) == ["x"]


def test_classes_that_only_look_alike_are_told_apart(tmp_path):
    names = {"train": "caf\u00e9", "val": "cafe\u0301"}
    for split, name in names.items():
        for number, folder in enumerate((name, "tea")):
            (tmp_path / split / folder).mkdir(parents=True)
            Image.fromarray(photo(number)).save(tmp_path / split / folder / "0.png")
    with pytest.raises(
        UsageError, match=r"'caf\\xe9' is written in another form of Unicode \('cafe\\u0301'\)"
    ):
        open_labelled(str(tmp_path), 0.2, 0)
