"""Predictions: the same figures as in evaluation, files for every task, and bad images."""

import itertools
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import fastmim
from conftest import QUICK as CLASSIFY
from conftest import USUAL, mostly_slow
from fastmim.cli.entry import main
from fastmim.data.annotations.masks import IGNORED, MaskCode, read_mask
from fastmim.data.loading.dataset import UnreadableRecord
from fastmim.downstream.detection.prediction import as_results
from fastmim.downstream.load_model import Classified, Segmented
from fastmim.downstream.predict import safe_name
from fastmim.downstream.segmentation.evaluation import SegmentationScores
from fastmim.errors import UsageError

TASKS, FORMS = ("segmenter", "detector", "classifier"), ("json", "parquet")
DEFAULT_FORMS = [("segmenter", "json"), ("detector", "parquet"), ("classifier", "json")]


@pytest.fixture(scope="module")
def classifier(photos, tmp_path_factory):
    run = tmp_path_factory.mktemp("predict") / "classify"
    settings = {**CLASSIFY, "encoder": "none", "model": "resnet10t", "kernels": USUAL}
    fastmim.finetune(data=photos, out=run, **settings)
    return run


def test_masks_give_the_miou_of_the_run(segmenter, scenes):
    model = fastmim.load(segmenter, "cpu")
    assert repr(model) == "LoadedModel(segment, 3 classes, 32x32 pixels)"
    files = sorted((scenes / "images" / "val").iterdir())
    confusion = np.zeros((3, 3), np.int64)
    for file, found in zip(files, model.predict(files), strict=True):
        assert isinstance(found, Segmented)
        true = read_mask((scenes / "masks" / "val" / file.name).read_bytes(), MaskCode(3))
        counted = true != IGNORED
        np.add.at(confusion, (true[counted], found.mask[counted]), 1)
    results = json.loads((segmenter / "results.json").read_text())
    assert SegmentationScores(confusion).miou == pytest.approx(results["miou"])
    assert results["confusion"] == confusion.tolist()


def test_detections_are_those_of_the_run(detector, squares):
    model = fastmim.load(detector, "cpu")
    files = sorted((squares / "val2017").iterdir())
    rows = [
        row for number, found in enumerate(model.predict(files)) for row in as_results(found, number, (1, 2))
    ]
    known = json.loads((detector / "detections.json").read_text())
    assert len(rows) == len(known) > 0

    def order(row: dict) -> tuple:
        return row["image_id"], row["category_id"], -row["score"], row["bbox"]

    for one, other in zip(sorted(rows, key=order), sorted(known, key=order), strict=True):
        assert one["bbox"] == pytest.approx(other["bbox"], abs=1e-3)
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)


def test_classes_give_the_accuracy_of_the_run(classifier, photos):
    model = fastmim.load(classifier, "cpu")
    files = sorted(photos.glob("*/*.*"))
    found = model.predict(files, batch=5)
    assert all(isinstance(one, Classified) for one in found)
    assert all(sum(one.probabilities) == pytest.approx(1, abs=1e-5) for one in found)
    assert all(list(one.probabilities) == sorted(one.probabilities, reverse=True) for one in found)


def test_arrays_and_single_images(classifier, segmenter, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no more")
    for run in (classifier, segmenter):
        model = fastmim.load(run, "cpu")
        (from_array,) = model.predict(pixels)
        from_file, broken = model.predict([tmp_path / "image.png", tmp_path / "broken.jpg"])
        assert isinstance(broken, UnreadableRecord)
        for one, other in zip(from_array, from_file, strict=True):
            assert np.array_equal(one, other)
        assert model.predict([]) == []


@pytest.mark.parametrize(("task", "form"), mostly_slow(itertools.product(TASKS, FORMS), DEFAULT_FORMS))
def test_the_command_writes_all_images(task, form, request, tmp_path, capsys):
    run, data = request.getfixturevalue(task), tmp_path / "data"
    (data / "inner").mkdir(parents=True)
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50 + number, 3), np.uint8)
        Image.fromarray(pixels).save(data / "inner" / f"{number}.png")
    (data / "broken.jpg").write_bytes(b"\xff\xd8 no more")
    out = tmp_path / "out"
    words = ["predict", "--run", str(run), "--data", str(data), "--out", str(out), "--format", form]
    words += ["--pictures", "2", "--workers", "0", "--accelerator", "cpu"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "left out: broken.jpg" in said
    assert "predictions for 3 images" in said
    if form == "json":
        rows = json.loads((out / "predictions.json").read_text())["predictions"]
    else:
        rows = pq.read_table(out / "predictions.parquet").to_pylist()
    assert [row["image"] for row in rows] == [f"inner/{number}.png" for number in range(3)]
    assert len(list((out / "pictures").rglob("*.png"))) == 2
    assert json.loads((out / "unreadable.json").read_text())[0]["image"] == "broken.jpg"
    if task == "segmenter":
        for number, row in enumerate(rows):
            with Image.open(out / row["mask"]) as mask:
                assert (mask.mode, mask.size) == ("L", (50 + number, 40))
    assert main(words) == 2
    assert "already exists; --overwrite replaces it" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/b.jpg", "a/b"),
        ("../b.jpg", "00000007"),
        ("/etc/b.jpg", "b"),
        ("a/../../b.jpg", "00000007"),
        ("c:\\b.jpg", "00000007"),
        ("a\nb.jpg", "00000007"),
        ("", "00000007"),
    ],
)
def test_names_stay_below_the_folder(name, expected):
    assert safe_name(name, 7) == expected


def test_other_folders_are_one_line(tmp_path, pretrained, capsys):
    with pytest.raises(UsageError, match=r"holds neither model\.safetensors nor"):
        fastmim.load(tmp_path)
    with pytest.raises(UsageError, match="holds no classifier; give the folder"):
        fastmim.load(pretrained)
    assert (
        main(["predict", "--run", str(tmp_path / "no"), "--data", str(tmp_path), "--out", str(tmp_path)]) == 2
    )
    assert "does not exist" in capsys.readouterr().err


def test_a_damaged_description_is_one_line(segmenter, tmp_path):
    from safetensors.torch import load_file, save_file

    state = load_file(segmenter / "model.safetensors")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match="does not describe its model"):
        fastmim.load(tmp_path)
    content = (segmenter / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(UsageError, match="is not a readable safetensors file"):
        fastmim.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(
        content.replace(b'\\"channels\\": 16', b'\\"channels\\": 17')
    )
    with pytest.raises(UsageError, match="does not fit its description"):
        fastmim.load(tmp_path)
