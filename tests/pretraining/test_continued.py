"""Pre-training from existing weights: of runs, files and timm; at other sizes and numbers of channels."""

import json
import shutil

import numpy as np
import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file, save_file

import fastmim
from conftest import QUICK, TINY, killed, same, weights
from fastmim.cli.entry import main
from fastmim.config import PretrainConfig, merge
from fastmim.encoders.trust import Trust
from fastmim.errors import UsageError
from fastmim.pretraining import build_method
from fastmim.pretraining.initial import load_weights, settings_of_weights
from fastmim.recipes.methods import defaults_of

REST = {name: value for name, value in TINY.items() if name not in ("model", "model_kwargs")}
SWIN = {"model": "swin_tiny_patch4_window7_224"}
SWIN["model_kwargs"] = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 4]}


def started(source, **settings):
    """The backbone at the start of a run."""
    config = PretrainConfig(data="x", out="y", weights=str(source), **settings)
    initial = load_weights(config, Trust())
    assert initial is not None
    return build_method(settings_of_weights(config, initial), None, initial).encoder


def test_a_run_starts_from_another_ones_weights(pretrained, photos, tmp_path):
    encoder = started(pretrained, image_size=32)
    assert same(dict(encoder.model.state_dict()), weights(pretrained))
    run = fastmim.pretrain(data=photos, out=tmp_path / "on", weights=str(pretrained), steps=2, **REST).run
    stored = yaml.safe_load((run / "config.yaml").read_text())
    assert stored["model"] == TINY["model"]
    assert stored["model_kwargs"]["embed_dim"] == 32
    assert json.loads((run / "encoder.json").read_text())["continued_from"] == str(pretrained)
    learned, before = weights(run), weights(pretrained)
    assert learned.keys() == before.keys()
    new = weights(fastmim.pretrain(data=photos, out=tmp_path / "new", steps=2, seed=3, **TINY).run)
    name = "blocks.0.attn.qkv.weight"
    moved = (learned[name] - before[name]).norm()
    assert 0 < moved < 0.1 * (new[name] - before[name]).norm()


@pytest.mark.parametrize("settings", [TINY, SWIN], ids=["vit", "swin"])
def test_another_size_is_that_of_fine_tuning(settings, photos, tmp_path):
    size = 32 if settings is TINY else 64
    fastmim.pretrain(data=photos, out=tmp_path / "run", steps=1, **{**TINY, **settings, "image_size": size})
    encoder = started(tmp_path / "run", image_size=2 * size)
    expected = fastmim.load_encoder(tmp_path / "run", image_size=2 * size)
    assert encoder.image_size == (2 * size, 2 * size)
    assert same(dict(encoder.model.state_dict()), dict(expected.state_dict()))


def test_a_file_with_timms_keys(tmp_path):
    torch.manual_seed(5)
    model = timm.create_model("resnet10t", num_classes=7)
    save_file(model.state_dict(), tmp_path / "resnet.safetensors")
    torch.save(model.state_dict(), tmp_path / "resnet.pth")
    for name in ("resnet.safetensors", "resnet.pth"):
        encoder = started(tmp_path / name, model="resnet10t", image_size=64)
        state = {key: value for key, value in model.state_dict().items() if not key.startswith("fc.")}
        assert same(dict(encoder.model.state_dict()), state)


@pytest.fixture
def downloaded(monkeypatch):
    """timm's weights of a ViT without a download."""
    real = timm.create_model
    torch.manual_seed(6)
    known = real("vit_tiny_patch16_224", num_classes=0, depth=2)

    def stand_in(name, pretrained=False, in_chans=3, **kwargs):
        model = real(name, in_chans=in_chans, **kwargs)
        if pretrained:
            state = known.state_dict()
            first = "patch_embed.proj.weight"
            state[first] = timm.models.adapt_input_conv(in_chans, state[first])
            model.load_state_dict(state, strict=False)
        return model

    monkeypatch.setattr(timm, "create_model", stand_in)
    return known.state_dict()


def test_timms_weights_and_their_position_embedding_are_kept_and_trained(downloaded):
    kwargs = {"model_kwargs": {"depth": 2}}
    encoder = started("timm:vit_tiny_patch16_224.augreg_in21k", image_size=224, **kwargs)
    assert torch.equal(encoder.model.pos_embed, downloaded["pos_embed"])
    assert encoder.model.pos_embed.requires_grad
    assert torch.equal(encoder.model.blocks[1].mlp.fc1.weight, downloaded["blocks.1.mlp.fc1.weight"])


@pytest.mark.parametrize("channels", [1, 5])
def test_other_channels_are_adapted_as_timm_does(pretrained, channels):
    encoder = started(pretrained, image_size=32, in_chans=channels)
    first = "patch_embed.proj.weight"
    before = weights(pretrained)[first]
    wanted = before.sum(1, keepdim=True) if channels == 1 else before[:, [0, 1, 2, 0, 1]] * 3 / 5
    torch.testing.assert_close(dict(encoder.model.state_dict())[first], wanted)


def test_a_killed_run_resumes_exactly_without_the_weights_that_it_began_from(pretrained, photos, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(pretrained, source)
    settings = {**REST, "data": photos, "weights": str(source), "steps": 4, "checkpoint_every_steps": 1}
    whole = fastmim.pretrain(out=tmp_path / "whole", **settings).run
    with killed(3):
        fastmim.pretrain(out=tmp_path / "killed", **settings)
    shutil.rmtree(source)
    assert fastmim.pretrain(out=tmp_path / "killed", resume=True).complete
    assert same(weights(whole), weights(tmp_path / "killed"))


@pytest.fixture
def sources(pretrained, tmp_path):
    """The same weights in every form, and what names their model."""
    dotted = tmp_path / "lr1.5"
    shutil.copytree(pretrained, dotted)
    state = load_file(pretrained / "encoder.safetensors")
    save_file(state, tmp_path / "plain.safetensors")
    torch.save(state, tmp_path / "plain.pth")
    named = {"model": TINY["model"], "model_kwargs": {**TINY["model_kwargs"], "img_size": 32}}
    return {
        "run": (pretrained, {}),
        "file": (pretrained / "encoder.safetensors", {}),
        "dotted": (dotted, {}),
        "plain": (tmp_path / "plain.safetensors", named),
        "pth": (tmp_path / "plain.pth", named),
    }


@pytest.mark.parametrize("kind", ["run", "file", "dotted", "plain", "pth"])
def test_all_forms_give_one_run_and_its_config_repeats_it(kind, sources, pretrained, photos, tmp_path):
    source, named = sources[kind]
    settings = {
        **REST,
        "data": photos,
        "steps": 1,
        "image_size": 64,
        "crop.mean": (0.5,) * 3,
        "crop.std": (0.5,) * 3,
    }
    expected = fastmim.pretrain(out=tmp_path / "run", weights=str(pretrained), **settings).run
    one = fastmim.pretrain(out=tmp_path / "one", weights=str(source), **settings, **named).run
    size = {"model_kwargs": named["model_kwargs"]} if named else {}  # which a file without description lacks
    two = fastmim.pretrain(out=tmp_path / "two", config=one / "config.yaml", **size).run
    assert same(weights(one), weights(expected))
    assert same(weights(one), weights(two))


@pytest.mark.slow
def test_two_processes_start_from_the_weights(sources, photos, tmp_path):
    source, named = sources["pth"]
    settings = {**REST, **named, "data": photos, "weights": str(source), "steps": 1, "image_size": 64}
    settings |= {"precision": "32-true", "accelerator": "cpu"}
    one = fastmim.pretrain(out=tmp_path / "one", micro_batch=4, **settings).run
    two = fastmim.pretrain(out=tmp_path / "two", devices=2, **settings).run
    torch.testing.assert_close(weights(two), weights(one), rtol=1e-4, atol=1e-5)


def test_a_classifier_and_its_drop_path_are_left_out(pretrained, photos, tmp_path):
    settings = {**QUICK, "encoder": pretrained, "data": photos, "drop_path": 0.4}
    tuned = fastmim.finetune(out=tmp_path / "classes", **settings).run
    run = fastmim.pretrain(data=photos, out=tmp_path / "run", weights=str(tuned), steps=1, **REST).run
    stored = yaml.safe_load((run / "config.yaml").read_text())["model_kwargs"]
    assert stored.get("drop_path_rate", 0) == 0
    assert not any(key.startswith("head.") for key in weights(run))
    again = fastmim.pretrain(out=tmp_path / "again", config=run / "config.yaml").run
    assert same(weights(run), weights(again))


def test_weights_of_four_channels_need_four(photos, tmp_path):
    (tmp_path / "data").mkdir()
    for number in range(8):
        np.save(
            tmp_path / "data" / f"{number}.npy", np.random.default_rng(number).random((40, 40, 4), np.float32)
        )
    settings = {"data": tmp_path / "data", "steps": 1}
    run = fastmim.pretrain(out=tmp_path / "run", in_chans=4, **settings, **TINY).run
    on = fastmim.pretrain(out=tmp_path / "on", in_chans=4, weights=str(run), **settings, **REST).run
    assert weights(on)["patch_embed.proj.weight"].shape[1] == 4
    for channels in (1, 3, 5):
        with pytest.raises(
            UsageError, match=f"in_chans = {channels}: weights = .* were trained on 4 channels"
        ):
            fastmim.pretrain(out=tmp_path / "x", in_chans=channels, weights=str(run), **settings, **REST)


def test_a_method_that_encodes_a_part_of_the_image_starts_at_that_size(photos, tmp_path):
    run = fastmim.pretrain(
        data=photos, out=tmp_path / "run", steps=1, **{**TINY, **SWIN, "image_size": 128}
    ).run
    config = merge(defaults_of("ummae"), {"data": "x", "out": "y", "weights": str(run), "image_size": 128})
    initial = load_weights(config, Trust())
    method = build_method(settings_of_weights(config, initial), None, initial)
    assert method.encoder.image_size == (64, 64)
    assert torch.equal(
        method.encoder.model.layers[0].blocks[0].mlp.fc1.weight,
        weights(run)["layers.0.blocks.0.mlp.fc1.weight"],
    )


def test_the_folder_of_the_weights_is_not_overwritten(pretrained, photos):
    with pytest.raises(UsageError, match="is the folder of weights = "):
        fastmim.pretrain(data=photos, out=pretrained, weights=str(pretrained), overwrite=True, **REST)
    assert (pretrained / "encoder.safetensors").is_file()


WRONG = [
    ({"weights": "nowhere"}, "weights = nowhere: there is no such file or folder"),
    ({"weights": ""}, r"weights is empty: give a run's folder"),
    ({"weights": "{run}", "model": "resnet18"}, r"model = resnet18: weights = .* are those of vit_tiny"),
    ({"weights": "{run}", "encoder": {"depth": 1}}, r"encoder\.depth = 1 goes with weights = none only"),
    ({"weights": "{run}", "model_kwargs": {"depth": 7}}, r"model_kwargs: depth = 7: weights = .* have 2"),
    ({"weights": "timm:resnet10tt"}, r"resnet10tt"),
    ({"weights": "mae:{run}/encoder.safetensors"}, r"."),
]


@pytest.mark.parametrize(("settings", "message"), WRONG)
def test_what_does_not_fit_is_one_line(settings, message, pretrained, photos, tmp_path):
    given = {
        name: value.replace("{run}", str(pretrained)) if isinstance(value, str) else value
        for name, value in settings.items()
    }
    with pytest.raises(UsageError, match=message):
        fastmim.pretrain(data=photos, out=tmp_path / "run", steps=1, **{**REST, **given})
    assert not (tmp_path / "run").exists()


def test_weights_that_lack_a_layer_are_refused(photos, tmp_path):
    state = timm.create_model("resnet10t").state_dict()
    state.pop("layer2.0.conv1.weight")
    save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(UsageError, match=r"it has no layer2\.0\.conv1\.weight"):
        started(tmp_path / "part.safetensors", model="resnet10t", image_size=64)


def test_a_module_takes_its_own_weights(pretrained, photos, tmp_path):
    with pytest.raises(UsageError, match="a module is trained as it is"):
        fastmim.pretrain(
            data=photos,
            out=tmp_path / "run",
            weights=str(pretrained),
            steps=1,
            **{**REST, "model": timm.create_model("resnet10t", num_classes=0, global_pool="")},
        )


def test_the_command(pretrained, photos, tmp_path, capsys):
    command = [
        "pretrain",
        "--data",
        str(photos),
        "--weights",
        str(pretrained),
        "--out",
        str(tmp_path / "run"),
    ]
    command += ["--out", str(tmp_path / "run"), "--steps", "1", "--batch-size", "4", "--workers", "0"]
    assert main([*command, "--image-size", "64"]) == 0
    text = capsys.readouterr().out
    assert f"training starts from the weights of {pretrained}" in text
    state = load_file(tmp_path / "run" / "encoder.safetensors")
    assert np.isfinite(state["pos_embed"].numpy()).all()
