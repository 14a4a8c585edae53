"""Columns of tables: by name first, then by type, and what was left is said."""

import datasets
import pytest
from PIL import Image

from conftest import photo
from fastmim.data.labelled import class_names, open_labelled
from fastmim.data.sources.base import notes_of
from fastmim.data.sources.columns import Columns
from fastmim.data.sources.open import open_images
from fastmim.errors import UsageError

COUNT = 8
datasets.disable_progress_bars()


def encoded(first: int) -> list[bytes]:
    import io

    files = []
    for number in range(COUNT):
        file = io.BytesIO()
        Image.fromarray(photo(first + number, 8, 8)).save(file, "PNG")
        files.append(file.getvalue())
    return files


VALUES = {
    "Image": datasets.Image(),
    "bytes": datasets.Value("binary"),
    "ClassLabel": datasets.ClassLabel(names=["a", "b"]),
    "int": datasets.Value("int64"),
    "string": datasets.Value("string"),
    "list": datasets.List(datasets.Value("int64")),
}


def write(path, **kinds):
    """A parquet file whose columns have these types; every column of images has its own."""
    values = {}
    for number, (name, kind) in enumerate(kinds.items()):
        if kind in ("Image", "bytes"):
            values[name] = encoded(100 * number)
        elif kind == "list":
            values[name] = [[n % 2] for n in range(COUNT)]
        else:
            values[name] = [str(n % 2) if kind == "string" else n % 2 for n in range(COUNT)]
    features = datasets.Features({name: VALUES[kind] for name, kind in kinds.items()})
    datasets.Dataset.from_dict(values, features=features).to_parquet(str(path))
    return {name: value[0] for name, value in values.items()}, str(path)


@pytest.mark.parametrize(
    ("kinds", "column"),
    [
        ({"mask": "Image", "image": "Image"}, "image"),
        ({"mask": "Image", "img": "Image", "depth": "Image"}, "img"),
        ({"mask": "Image", "Image": "Image"}, "Image"),
        ({"mask": "Image", "image": "bytes"}, "image"),
        ({"scan": "Image"}, "scan"),
        ({"scan": "Image", "blob": "bytes"}, "scan"),
        ({"jpg": "bytes", "cls": "int"}, "jpg"),
        ({"image": "string", "picture": "bytes"}, "picture"),
    ],
)
def test_the_column_of_images(tmp_path, kinds, column):
    first, spec = write(tmp_path / "t.parquet", **kinds)
    source = open_images(spec)
    assert source.read(0) == first[column]
    left = [name for name, kind in kinds.items() if kind in ("Image", "string") and name != column]
    said = " ".join(notes_of(source))
    assert all(name in said for name in left)
    assert (f"column {column!r}" in said) == bool(left)


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        ({"left": "Image", "right": "Image"}, "several columns of images, left, right: .*--columns.image"),
        ({"image": "int"}, r"no image column \(columns: image \(int64\)\)"),
        ({"image": "string"}, "no image column"),
        (
            {"image": "string", "mask": "Image"},
            "image .string. does not hold images.*mask",
        ),
        ({"image": "list", "thumbnail": "Image"}, "if thumbnail is meant"),
        ({"image": "list"}, "no image column"),
        ({"blob": "bytes"}, "--columns.image"),
    ],
)
def test_images_that_are_open_or_absent(tmp_path, kinds, said):
    _, spec = write(tmp_path / "t.parquet", **kinds)
    with pytest.raises(UsageError, match=said):
        open_images(spec)


@pytest.mark.parametrize(
    ("kinds", "column"),
    [
        ({"weather": "ClassLabel", "label": "int"}, "label"),
        ({"weather": "ClassLabel", "Label": "ClassLabel"}, "Label"),
        ({"coarse_label": "ClassLabel", "fine_label": "ClassLabel"}, "fine_label"),
        ({"species": "ClassLabel", "note": "string"}, "species"),
        ({"labels": "list", "class": "string"}, "class"),
        ({"weather": "ClassLabel", "category": "string"}, "category"),
    ],
)
def test_the_column_of_classes(tmp_path, kinds, column):
    _, spec = write(tmp_path / "t.parquet", image="Image", **kinds)
    training, _ = open_labelled(spec, 0.25, 0)
    names = ("a", "b") if kinds[column] == "ClassLabel" else ("0", "1")
    assert training.classes == names
    assert class_names(spec, open_images(spec)) == list(names) * 4
    left = [name for name, kind in kinds.items() if kind == "ClassLabel" and name != column]
    assert all(name in " ".join(training.notes) for name in left)


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        ({"weather": "ClassLabel", "place": "ClassLabel"}, "several columns of classes, weather, place"),
        ({"caption": "string"}, "no column of classes"),
        ({"labels": "list", "weather": "ClassLabel"}, "labels .List. .*weather is meant.*--columns.label"),
        ({"label": "Image", "weather": "ClassLabel"}, "if weather is meant"),
        ({"labels": "list"}, "no column of classes"),
    ],
)
def test_classes_that_are_open_or_absent(tmp_path, kinds, said):
    _, spec = write(tmp_path / "t.parquet", image="Image", **kinds)
    with pytest.raises(UsageError, match=said):
        open_labelled(spec, 0.25, 0)


def test_columns_can_be_chosen(tmp_path):
    kinds = {"left": "Image", "right": "Image", "weather": "ClassLabel", "place": "int", "several": "list"}
    first, spec = write(tmp_path / "t.parquet", **kinds)
    chosen = Columns(image="right", label="place")
    training, _ = open_labelled(spec, 0.25, 0, chosen)
    assert training.classes == ("0", "1")
    assert open_images(spec, chosen).read(0) == first["right"]
    for wrong, said in {
        Columns(image="middle"): "columns.image = middle does not exist .* left, right",
        Columns(image="place"): "columns.image = place does not hold images or bytes",
        Columns(image="left", label="several"): "columns.label = several does not hold one class per row",
    }.items():
        with pytest.raises(UsageError, match=said):
            open_labelled(spec, 0.25, 0, wrong)
