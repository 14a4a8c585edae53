"""What a user gives as weights is parsed in one place, without torch, and loaded by one function."""

import subprocess
import sys

import pytest
import timm
import torch
from safetensors.torch import save_file

from fastmim.errors import UsageError
from fastmim.weights.load import factory_of, load
from fastmim.weights.spec import parse_weights

VIT = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 32}


@pytest.mark.parametrize(
    ("text", "kind", "name", "file"),
    [
        ("", "missing", "", ""),
        ("none", "scratch", "", ""),
        ("timm:vit_base_patch16_224.augreg_in1k", "timm", "vit_base_patch16_224.augreg_in1k", ""),
        ("mae:mae_pretrain_vit_base.pth", "released", "", "mae_pretrain_vit_base.pth"),
        ("runs/mim", "file", "", "runs/mim"),
        ("C:/runs/mim", "file", "", "C:/runs/mim"),
    ],
)
def test_each_kind(text, kind, name, file):
    spec = parse_weights(text)
    assert (spec.kind, spec.name, spec.file, spec.text) == (kind, name, file, text)
    assert spec.has_weights == (kind not in ("missing", "scratch"))
    assert factory_of(text) is None if kind != "file" else True


def test_parsing_needs_no_torch():
    code = (
        "import sys; from fastmim.weights.spec import parse_weights; parse_weights('timm:x'); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_file_of_timms_keys_takes_any_size_and_pooling(tmp_path):
    name = "vit_tiny_patch16_224"
    model = timm.create_model(name, num_classes=5, **VIT)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    file = tmp_path / "weights.safetensors"
    loaded = load(file, model=name, model_kwargs=VIT)
    assert (loaded.size, loaded.missing_keys, loaded.unexpected_keys) == ((32, 32), [], [])
    assert torch.equal(loaded.model.blocks[1].attn.qkv.weight, model.blocks[1].attn.qkv.weight)
    pooled = load(file, 64, name, VIT, changes=lambda name, kwargs: {"global_pool": "avg"})
    assert pooled.model.pos_embed.shape[1] == 17
    assert pooled.missing_keys == ["fc_norm.bias", "fc_norm.weight"]
    assert pooled.unexpected_keys == ["norm.bias", "norm.weight"]


def test_new_weights_are_torchs_next_random_ones():
    torch.manual_seed(0)
    first = load("none", 32, "vit_tiny_patch16_224", VIT)
    torch.manual_seed(0)
    again = load("none", 32, "vit_tiny_patch16_224", VIT)
    assert load("none", model="resnet10t").size == (176, 176)  # no multiple of its stride
    assert first.metadata["mean"] is None
    assert all(map(torch.equal, first.model.state_dict().values(), again.model.state_dict().values()))


@pytest.mark.parametrize(
    ("source", "settings", "said"),
    [
        ("", {}, r"^encoder is missing: give a run's folder"),
        ("none", {}, r"^model is missing: with encoder = none, give the name of a backbone$"),
        (
            "timm:resnet18",
            {"model": "resnet18"},
            r"^model = resnet18: encoder = timm:resnet18 already names the model",
        ),
        ("timm:a.b:c", {}, r"^encoder = timm:a.b:c: give a timm name"),
        ("mae:weights.pth", {}, r"^model is missing: mae:weights.pth does not name its model"),
        ("mae:weights.pth", {"model": "vit_tiny_patch16_224"}, r"^weights.pth is not a file$"),
        ("nowhere", {}, r"^nowhere holds no encoder.safetensors"),
        ("nowhere.safetensors", {"model": "resnet18"}, r"^nowhere.safetensors is not a file$"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(source, settings, said):
    with pytest.raises(UsageError, match=said):
        load(source, **settings)


def test_a_model_is_given_only_where_the_file_does_not_name_it(tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"")
    with pytest.raises(UsageError, match=r"^distill.model is missing: .*weights.pth does not name its model"):
        load(tmp_path / "weights.pth", setting="distill.teacher")
