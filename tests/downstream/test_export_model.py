"""Whole segmenters and detectors as ONNX: the same outputs, on real images."""

import json
import math

import numpy as np
import pytest
import torch

import fastmim
from fastmim.cli.entry import main
from fastmim.downstream.export_model import export_model, same_objects
from fastmim.errors import RunError, UsageError
from fastmim.export import onnx_file

pytest.importorskip("onnxruntime")


def runtime(folder):
    import onnxruntime

    return onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])


def test_a_segmenter_gives_its_logits(segmenter, tmp_path, capsys):
    out = tmp_path / "onnx"
    flags = ["--part", "model", "--format", "onnx", "--out", str(out)]
    assert main(["export", "--encoder", str(segmenter), *flags]) == 0
    assert "differ by at most" in capsys.readouterr().out
    session = runtime(out)
    images = torch.randn(3, 3, 32, 32)
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    with torch.no_grad():
        expected = fastmim.load(segmenter, "cpu").model(images)
    np.testing.assert_allclose(logits, expected, atol=1e-5 * float(expected.abs().max()))
    card = (out / "README.md").read_text()
    assert "`images`: (B, 3, 32, 32)" in card
    assert "(B, 3, 32, 32): of the classes at each pixel" in card
    assert "0. 0\n1. 1\n2. 2" in card  # the classes


def test_a_detector_gives_its_objects(detector, squares, tmp_path):
    exported = export_model(detector, tmp_path / "onnx")
    assert exported.files == ["README.md", "model.onnx"]
    session = runtime(exported.folder)
    assert [output.name for output in session.get_outputs()] == ["boxes", "scores", "labels", "masks"]
    file = sorted((squares / "val2017").iterdir())[0]
    loaded = fastmim.load(detector, "cpu")
    (wanted,) = loaded.predict(file)
    pixels = np.asarray(fastmim_pixels(file), np.float32) / 255
    images = (pixels - loaded.mean.numpy()) / loaded.std.numpy()
    boxes, scores, labels, masks = session.run(None, {"images": images.transpose(2, 0, 1)[None]})
    assert len(scores) == len(wanted.scores) > 10
    np.testing.assert_allclose(scores, wanted.scores, atol=1e-4)
    assert masks.shape == (len(scores), 28, 28)
    assert set(labels.tolist()) <= {0, 1}
    ours = tuple(torch.from_numpy(part) for part in (wanted.boxes, wanted.scores, wanted.labels))
    theirs = [torch.from_numpy(part) for part in (boxes, scores, labels)]
    assert same_objects(ours, theirs, (64, 64)) < 1e-4


def fastmim_pixels(file):
    from PIL import Image

    return Image.open(file).convert("RGB")


def objects(*scores):
    count = len(scores)
    boxes = torch.arange(4.0 * count).view(count, 4)
    return boxes, torch.tensor(scores), torch.arange(count) % 2


def test_objects_are_compared_in_any_order_and_none_may_be_missing():
    boxes, scores, labels = objects(0.9, 0.8, 0.3)
    order = torch.tensor([1, 0, 2])
    swapped = [boxes[order], scores[order], labels[order]]
    assert same_objects((boxes, scores, labels), swapped, (100, 100)) == 0
    moved = [boxes + 1, scores, labels]
    assert same_objects((boxes, scores, labels), moved, (100, 50)) == pytest.approx(0.01)
    fewer = [boxes[1:], scores[1:], labels[1:]]
    assert same_objects((boxes, scores, labels), fewer, (100, 100)) == 1
    twice = [torch.cat([part, part]) for part in (boxes, scores, labels)]
    assert same_objects((boxes, scores, labels), twice, (100, 100)) == 1
    broken = [boxes, torch.tensor([0.9, float("nan"), 0.3]), labels]
    assert math.isnan(same_objects((boxes, scores, labels), broken, (100, 100)))
    relabelled = [boxes, scores, labels + 2]
    assert same_objects((boxes, scores, labels), relabelled, (100, 100)) == 1
    last = [boxes[:2], scores[:2], labels[:2]]  # which lies at the least score
    assert same_objects((boxes, scores, labels), last, (100, 100)) == 0


def test_wrong_outputs_are_not_written(detector, tmp_path, monkeypatch):
    real = onnx_file.onnx_session
    monkeypatch.setattr(
        onnx_file, "onnx_session", lambda file: lambda images: [part + 1 for part in real(file)(images)]
    )
    with pytest.raises(RunError, match="the outputs differ by"):
        export_model(detector, tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


def test_what_has_no_model_is_one_line(pretrained, tmp_path, capsys):
    with pytest.raises(UsageError, match=r"holds no model\.safetensors"):
        export_model(pretrained, tmp_path / "onnx")
    command = ["export", "--encoder", str(pretrained), "--part", "model", "--out", str(tmp_path / "x")]
    assert main(command) == 2
    assert "part = model goes with --format onnx" in capsys.readouterr().err


def test_the_encoder_of_a_run_is_exported_as_before(segmenter, tmp_path):
    out = tmp_path / "timm"
    assert main(["export", "--encoder", str(segmenter), "--out", str(out)]) == 0
    assert json.loads((out / "config.json").read_text())["architecture"] == "resnet10t"
