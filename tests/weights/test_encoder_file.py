"""An encoder's file of somebody else: read where it is sound, else one line that says what is wrong."""

import json
import os
import struct

import pytest
import safetensors.torch
import timm
import torch

import fastmim
from fastmim.errors import UsageError
from fastmim.weights.encoder_file import check_finite, read_encoder

KWARGS = {"embed_dim": 32, "depth": 1, "num_heads": 2, "img_size": 32}
VIT = "vit_tiny_patch16_224"
ORIGIN = {
    "model": VIT,
    "kwargs": KWARGS,
    "image_size": [32, 32],
    "in_chans": 3,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "method": "fastmim",
    "target": "hog",
}


def state():
    torch.manual_seed(0)
    return timm.create_model(VIT, num_classes=0, **KWARGS).state_dict()


def write(folder, origin=ORIGIN, tensors=None, text=None):
    file = folder / "encoder.safetensors"
    text = json.dumps(origin) if text is None else text
    safetensors.torch.save_file(state() if tensors is None else tensors, file, {"fastmim": text})
    return file


def refusal(file):
    """What is said of a file; it is one line, and not long."""
    with pytest.raises(UsageError) as error:
        fastmim.load_encoder(file)
    said = str(error.value)
    assert len(said.splitlines()) == 1
    assert len(said) < 600
    return said


def test_a_sound_file_gives_the_very_weights(tmp_path):
    found = fastmim.load_encoder(write(tmp_path)).state_dict()
    assert all(torch.equal(found[name], value) for name, value in state().items())


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"mean": [float("nan")] * 3}, "mean"),
        ({"mean": [1e39, 0.0, 0.0]}, "mean"),
        ({"mean": [True, 0.5, 0.5]}, "mean"),
        ({"mean": ["0.5", 0.5, 0.5]}, "mean"),
        ({"mean": 0.5}, "mean"),
        ({"mean": [0.5]}, "mean"),
        ({"std": [0.5, 0.0, 0.5]}, "std"),
        ({"std": [-0.5, 0.5, 0.5]}, "std"),
        ({"std": [0.5] * 4}, "std"),
        ({"std": None}, "std"),
        ({"image_size": [32]}, "image_size"),
        ({"image_size": [32, 1e9]}, "image_size"),
        ({"image_size": [1 << 40, 32]}, "image_size"),
        ({"image_size": [True, 32]}, "image_size"),
        ({"in_chans": 0}, "in_chans"),
        ({"in_chans": 3.0}, "in_chans"),
        ({"in_chans": 1 << 40}, "in_chans"),
        ({"model": ""}, "model"),
        ({"model": ["a"]}, "model"),
        ({"model": "m" * 10_000}, "model"),
        ({"kwargs": []}, "kwargs"),
        ({"kwargs": {"embed_dim": 1 << 40}}, "embed_dim"),
        ({"kwargs": {**KWARGS, "depth": 100_000}}, "depth"),
        ({"kwargs": {**KWARGS, "embed_dim": 60_000}}, "does not match its"),
        ({"kwargs": {**KWARGS, "checkpoint_path": "/etc/passwd"}}, "checkpoint_path"),
        ({"kwargs": {**KWARGS, "pretrained_cfg": {"url": "x"}}}, "pretrained_cfg"),
        ({"kwargs": {**KWARGS, "pretrained": True}}, "pretrained"),
        ({"kwargs": {**KWARGS, "cache_dir": "/tmp"}}, "cache_dir"),
        ({"kwargs": {**KWARGS, "drop_rate": float("nan")}}, "drop_rate"),
        ({"kwargs": {**KWARGS, "nonsense": 1}}, "nonsense"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_description_that_cannot_be_is_named_by_its_field(changes, field, tmp_path):
    assert field in refusal(write(tmp_path, {**ORIGIN, **changes}))


@pytest.mark.parametrize("name", ["model", "kwargs", "image_size", "in_chans", "mean", "std", "method"])
def test_what_is_missing_is_named(name, tmp_path):
    said = refusal(write(tmp_path, {key: value for key, value in ORIGIN.items() if key != name}))
    assert f"{name} is missing" in said


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "5", "null", '"a"', "[" * 5000, '{"a":' * 5000, "9" * 20_000], ids=lambda t: t[:8]
)
def test_what_is_no_description_is_one_line(text, tmp_path):
    refusal(write(tmp_path, text=text))


def test_the_tensors_must_be_the_models(tmp_path):
    name = "blocks.0.attn.qkv.weight"
    for change, part in {
        "nan": torch.full_like(state()[name], float("nan")),
        "infinite": torch.full_like(state()[name], float("inf")),
        "shape": torch.zeros(3, 3),
        "bool": torch.zeros_like(state()[name]).bool(),
        "int8": torch.zeros_like(state()[name]).to(torch.int8),
    }.items():
        said = refusal(write(tmp_path, tensors={**state(), name: part}))
        assert "qkv" in said, change
    assert "qkv" in refusal(write(tmp_path, tensors={k: v for k, v in state().items() if k != name}))
    assert "extra.weight" in refusal(write(tmp_path, tensors={**state(), "extra.weight": torch.zeros(2)}))


def test_a_bound_may_be_infinite_and_not_nan():
    check_finite({"clip.max": torch.tensor(float("inf"))}, "a")
    for value in (torch.tensor(float("nan")), torch.tensor([float("inf")])):
        with pytest.raises(UsageError, match=r"clip\.max"):
            check_finite({"clip.max": value}, "a")


def test_half_precision_is_taken(tmp_path):
    half = {name: value.half() for name, value in state().items()}
    found = fastmim.load_encoder(write(tmp_path, tensors=half)).state_dict()
    assert all(torch.equal(found[name], value.float()) for name, value in half.items())


@pytest.mark.parametrize(
    "kind", ["empty", "text", "cut", "header too long", "FIFO", "folder", "dangling link"]
)
def test_what_is_no_file_of_weights_is_one_line(kind, tmp_path):
    file = write(tmp_path)
    content = file.read_bytes()
    file.unlink()
    if kind == "FIFO":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind == "dangling link":
        file.symlink_to(tmp_path / "nowhere")
    else:
        lies = struct.pack("<Q", 1 << 60) + content[8:]
        file.write_bytes({"empty": b"", "text": b"hello", "cut": content[:-100]}.get(kind, lies))
    with pytest.raises(UsageError) as error:
        read_encoder(file)
    assert len(str(error.value).splitlines()) == 1


def test_weights_of_another_program_are_no_encoder(tmp_path):
    file = tmp_path / "encoder.safetensors"
    safetensors.torch.save_file(state(), file)
    assert "does not name its model" in refusal(file)
    (tmp_path / "encoder.json").write_text(json.dumps(ORIGIN))
    assert fastmim.load_encoder(file) is not None
