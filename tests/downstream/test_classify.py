"""Fine-tuning: what it starts from, that it learns, what it writes, and that it resumes exactly."""

import json
import logging

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import fastmim
from conftest import QUICK, TINY, Killed, lines, mostly_slow, photo, same, weights
from fastmim.cli.entry import main
from fastmim.config import FinetuneConfig
from fastmim.downstream.classification.model import ClassificationModel, PooledClassifier
from fastmim.downstream.classification.start import build_classifier
from fastmim.errors import RunError, UsageError
from fastmim.train import loop as loop_module
from fastmim.train.layer_decay import layer_decay_groups
from fastmim.weights.encoder_file import save_encoder

FILES = {
    "config.yaml",
    "metrics.jsonl",
    "last.ckpt",
    "encoder.safetensors",
    "encoder.json",
    "results.json",
    "skipped.jsonl",
}
SCRATCH = {"encoder": "none", "model": TINY["model"], "model_kwargs": TINY["model_kwargs"]}


@pytest.fixture(scope="module")
def finished(pretrained, photos, tmp_path_factory):
    run = tmp_path_factory.mktemp("classes") / "run"
    result = fastmim.finetune(encoder=pretrained, data=photos, out=run, **QUICK)
    assert result.complete
    return run


def test_it_writes_these_files_and_no_others(finished):
    names = {path.name for path in finished.iterdir()}
    assert {name for name in names if not name.startswith("events.out")} == FILES


def test_results_say_what_was_measured(finished, pretrained):
    results = json.loads((finished / "results.json").read_text())
    assert results["images"] == 6
    assert results["training_images"] == 18
    assert set(results["per_class"]) == {"class0", "class1"}
    right = sum(c["top1"] * c["images"] for c in results["per_class"].values())
    assert results["top1"] == pytest.approx(right / results["images"])
    assert results["top5"] == 100
    assert results["encoder"]["from"] == str(pretrained)
    assert results["encoder"]["method"] == "fastmim"
    assert results["seconds"] > 0
    assert results["images_per_second"] > 0
    assert lines(finished)[-1]["top1"] == results["top1"]


def test_timm_alone_rebuilds_the_classifier(finished):
    origin = json.loads((finished / "encoder.json").read_text())
    model = timm.create_model(origin["model"], **origin["kwargs"])
    model.load_state_dict(load_file(finished / "encoder.safetensors"), strict=True)
    ours = fastmim.load_encoder(finished)
    images = torch.randn(2, 3, 32, 32)
    assert model.eval()(images).shape == (2, 2)
    torch.testing.assert_close(model(images), ours.eval()(images))
    assert origin["classes"] == ["class0", "class1"]


def test_a_fine_tuned_model_gives_a_backbone_or_takes_new_classes(finished, caplog):
    assert fastmim.load_encoder(finished, num_classes=0).eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 32)
    with caplog.at_level(logging.WARNING, "fastmim"):
        model = fastmim.load_encoder(finished, image_size=64, num_classes=7)
    assert "head" in caplog.text
    assert model.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 7)


def test_pre_trained_weights_arrive(pretrained):
    config = FinetuneConfig(encoder=str(pretrained), image_size=32)
    start = build_classifier(config, 3)
    known, state = weights(pretrained), start.model.state_dict()
    kept = {name for name in known if name in state and torch.equal(known[name], state[name])}
    assert {name for name in known if name.startswith("blocks.")} <= kept
    assert sorted(set(known) - set(state)) == ["norm.bias", "norm.weight"]  # the mean is normed instead
    assert any("fc_norm" in note for note in start.notes)
    assert any("norm.weight" in note for note in start.notes)
    assert all(p.requires_grad for p in start.model.parameters())


def test_the_class_token_can_be_pooled_instead(pretrained):
    config = FinetuneConfig(encoder=str(pretrained), image_size=32, pool="token")
    start = build_classifier(config, 3)
    assert set(weights(pretrained)) <= set(start.model.state_dict())
    assert start.notes == []


@pytest.mark.parametrize("size", [pytest.param(48, marks=pytest.mark.slow), (32, 64)])
def test_another_size_resamples_position_embeddings(pretrained, photos, tmp_path, size):
    result = fastmim.finetune(
        encoder=pretrained, data=photos, out=tmp_path / "run", **QUICK | {"image_size": size, "steps": 1}
    )
    origin = json.loads((result.run / "encoder.json").read_text())
    model = timm.create_model(origin["model"], **origin["kwargs"])
    model.load_state_dict(load_file(result.run / "encoder.safetensors"), strict=True)


@pytest.mark.parametrize(("size", "window"), [(224, 7), pytest.param(384, 12, marks=pytest.mark.slow)])
def test_swins_window_grows_with_the_image(photos, tmp_path, size, window):
    run = tmp_path / "run"
    narrow = {"embed_dim": 16, "depths": [1, 1, 2, 1], "num_heads": [1, 1, 2, 4]}
    swin = TINY | {"model": "swin_tiny_patch4_window7_224", "model_kwargs": narrow, "image_size": 128}
    fastmim.pretrain(data=photos, out=run, steps=1, **swin)
    old = weights(run)["layers.0.blocks.0.attn.relative_position_bias_table"]
    assert old.shape[0] == 49  # window 4
    start = build_classifier(FinetuneConfig(encoder=str(run), image_size=size), 2)
    new = start.model.state_dict()["layers.0.blocks.0.attn.relative_position_bias_table"]
    assert new.shape[0] == (2 * window - 1) ** 2
    grid = old.reshape(1, 7, 7, -1).permute(0, 3, 1, 2)
    wanted = nn.functional.interpolate(grid, (2 * window - 1,) * 2, mode="bicubic")
    torch.testing.assert_close(new, wanted.permute(0, 2, 3, 1).flatten(0, 2))


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "resnet10t", "test_convnext"])
def test_layer_decay_lets_late_layers_learn_faster(model):
    net = timm.create_model(model, num_classes=3)
    config = FinetuneConfig(encoder="none", model=model)
    groups = layer_decay_groups(net, 0.5, config.optim)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert set(scale) == {id(p) for p in net.parameters()}
    assert all(scale[id(p)] == 1 for p in net.get_classifier().parameters())
    assert scale[id(next(iter(net.parameters())))] == min(scale.values()) < 0.5
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert all(decays[id(p)] == 0 for p in net.parameters() if p.ndim <= 1)
    equal = layer_decay_groups(net, 1.0, config.optim)
    assert {group["lr_scale"] for group in equal} == {1.0}


def test_the_learning_rate_of_each_layer_is_scaled(pretrained, photos, tmp_path, monkeypatch):
    seen = []
    real = loop_module.guarded_step

    def spy(optimizer, lr, clip):
        result = real(optimizer, lr, clip)
        seen.append((lr, {group["lr"] / lr for group in optimizer.param_groups}))
        return result

    monkeypatch.setattr(loop_module, "guarded_step", spy)
    fastmim.finetune(encoder=pretrained, data=photos, out=tmp_path / "run", layer_decay=0.5, **QUICK)
    assert len(seen) == 4
    assert all(max(scales) == 1 and min(scales) == pytest.approx(0.125) for _, scales in seen)


def colours(root, count):
    """Two classes that anything can tell apart: dark and light photos."""
    for label, add in (("dark", 0), ("light", 128)):
        (root / label).mkdir(parents=True)
        for number in range(count):
            values = (photo(number, 32, 32) // 2 + add).astype(np.uint8)
            Image.fromarray(values).save(root / label / f"{number}.png")
    return root


@pytest.mark.parametrize("ema", mostly_slow([None, 0.8], [0.8]))
def test_it_learns_what_can_be_learned(tmp_path, ema):
    result = fastmim.finetune(
        data=colours(tmp_path / "data", 24),
        out=tmp_path / "run",
        **SCRATCH,
        **QUICK | {"steps": 60, "batch_size": 16},
        ema=ema,
        layer_decay=1.0,
        head_std=0.02,
        drop_path=0.0,
        optim={"base_lr": 0.03},
        augment={"mixup": 0, "cutmix": 0, "rand_magnitude": 0, "erase": 0},
    )
    assert result.top1 > 95


def test_the_running_mean_follows_and_is_exported(pretrained, photos, tmp_path):
    run = tmp_path / "run"
    fastmim.finetune(encoder=pretrained, data=photos, out=run, ema=0.5, **QUICK)
    module = torch.load(run / "last.ckpt", weights_only=True)["module"]
    mean = {name.removeprefix("mean.module."): v for name, v in module.items() if name.startswith("mean.")}
    last = {name.removeprefix("model."): v for name, v in module.items() if name.startswith("model.")}
    assert same(weights(run), mean)
    assert not same(mean, last)


@pytest.mark.parametrize("more", mostly_slow([{}, {"ema": 0.9}, {"labels": "5/class"}], [{"ema": 0.9}]))
def test_a_killed_run_resumes_exactly(pretrained, photos, tmp_path, monkeypatch, more):
    settings = {**QUICK, "encoder": pretrained, "data": photos, "checkpoint_every_steps": 1, **more}
    whole = fastmim.finetune(out=tmp_path / "whole", **settings)
    real, count = loop_module.guarded_step, 0

    def killed(*arguments):
        nonlocal count
        count += 1
        if count == 3:
            raise Killed
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop_module, "guarded_step", killed)
        with pytest.raises(Killed):
            fastmim.finetune(out=tmp_path / "killed", **settings)
    resumed = fastmim.finetune(out=tmp_path / "killed", resume=True, **settings)
    assert same(weights(whole.run), weights(resumed.run))
    assert (whole.top1, whole.steps) == (resumed.top1, resumed.steps)
    assert [line["loss"] for line in lines(whole.run)] == [line["loss"] for line in lines(resumed.run)]


def test_a_resumed_run_may_not_change_what_it_learns(finished, pretrained, photos):
    again = {**QUICK, "encoder": pretrained, "data": photos, "out": finished, "resume": True}
    with pytest.raises(UsageError, match=r"layer_decay = 0\.5 differs"):
        fastmim.finetune(**again, layer_decay=0.5)
    with pytest.raises(UsageError, match="no longer holds the images"):
        fastmim.finetune(**again | {"data": "demo:digits"})
    with pytest.raises(UsageError, match="already holds a run"):
        fastmim.finetune(**again | {"resume": False})


def test_other_weights_are_not_taken_for_those_that_it_began_with(pretrained, photos, tmp_path):
    encoder = tmp_path / "encoder.safetensors"
    encoder.write_bytes((pretrained / "encoder.safetensors").read_bytes())
    run = {**QUICK, "encoder": encoder, "data": photos, "out": tmp_path / "run"}
    fastmim.finetune(**run)
    origin = json.loads((pretrained / "encoder.json").read_text())
    save_encoder(tmp_path, timm.create_model(origin["model"], **origin["kwargs"]), origin)
    with pytest.raises(UsageError, match="no longer holds the weights"):
        fastmim.finetune(**run, resume=True)


def test_settings_that_could_not_be_heeded_are_refused(pretrained, photos, tmp_path):
    run = {**QUICK, "encoder": pretrained, "data": photos, "out": tmp_path / "run"}
    for settings, said in (
        ({"model_kwargs": {"depth": 3}}, "go with encoder = none only"),
        ({"in_chans": 1}, "the encoder was trained on 3"),
        ({"crop": {"mean": [0.5], "std": [0.5]}}, "crop.mean has 1 numbers"),
        ({"out": pretrained, "overwrite": True}, "is the folder of encoder = "),
    ):
        with pytest.raises(UsageError, match=said):
            fastmim.finetune(**run | settings)
    assert (pretrained / "encoder.safetensors").is_file()


def test_a_bad_image_costs_that_image(pretrained, tmp_path):
    data = colours(tmp_path / "data", 24)
    for label in ("dark", "light"):
        (data / label / "1.png").write_text("broken")
    result = fastmim.finetune(
        encoder=pretrained, data=data, out=tmp_path / "run", max_unreadable=0.2, **QUICK | {"steps": 12}
    )
    results = json.loads((result.run / "results.json").read_text())
    listed = (result.run / "skipped.jsonl").read_text().splitlines()
    assert len(listed) + results["unreadable"] == 2
    for label in ("dark", "light"):
        for number in range(2, 20):
            (data / label / f"{number}.png").write_text("broken")
    with pytest.raises(RunError, match=r"cannot be read, more than max_unreadable"):
        fastmim.finetune(encoder=pretrained, data=data, out=tmp_path / "two", **QUICK)


class Own(nn.Module):
    """A backbone of somebody's own, without a classifier."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.GELU(), nn.Conv2d(16, 24, 2, 2))

    def forward(self, images):
        return self.layers(images)


def test_a_module_of_ones_own_is_fine_tuned(photos, tmp_path):
    plain = {key: value for key, value in TINY.items() if key not in ("model", "model_kwargs")}
    fastmim.pretrain(model=Own(), data=photos, out=tmp_path / "run", steps=1, **plain)
    result = fastmim.finetune(
        model=Own(), encoder=tmp_path / "run", data=photos, out=tmp_path / "classes", **QUICK
    )
    backbone = fastmim.load_encoder(result.run, model=Own())
    assert backbone(torch.zeros(1, 3, 32, 32)).shape == (1, 24, 4, 4)
    config = FinetuneConfig(encoder=str(tmp_path / "run"), image_size=32)
    assert isinstance(build_classifier(config, 2, Own()).model, PooledClassifier)


def test_the_loss_is_the_cross_entropy_with_soft_targets():
    learner = ClassificationModel(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), None)
    images, targets = torch.randn(4, 3, 2, 2), torch.softmax(torch.randn(4, 3), 1)
    wanted = -(targets * torch.log_softmax(learner.model(images), 1)).sum(1).mean()
    torch.testing.assert_close(learner(images, targets).loss, wanted)


def test_scratch_starts_from_the_position_embedding_of_pre_training(pretrained):
    config = FinetuneConfig(**SCRATCH, image_size=32)
    state = build_classifier(config, 2).model.state_dict()
    assert torch.equal(state["pos_embed"], weights(pretrained)["pos_embed"])


def test_other_channels_are_taken_from_the_encoder(tmp_path):
    for label in ("a", "b"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(8):
            image = np.random.default_rng(number).random((20, 20, 5), np.float32)
            np.save(tmp_path / "data" / label / f"{number}.npy", image)
    fastmim.pretrain(data=tmp_path / "data", out=tmp_path / "run", steps=1, in_chans=5, **TINY)
    result = fastmim.finetune(
        encoder=tmp_path / "run", data=tmp_path / "data", out=tmp_path / "classes", **QUICK
    )
    assert json.loads((result.run / "encoder.json").read_text())["in_chans"] == 5


def test_two_processes_measure_and_learn_like_one(pretrained, photos, tmp_path):
    """With all that is drawn: crops, RandAugment, erasing, mixup, drop path."""
    settings = {**QUICK, "encoder": pretrained, "data": photos, "accelerator": "cpu", "precision": "32-true"}
    settings |= {"micro_batch": 4, "drop_path": 0.5, "augment": {"erase": 1.0}}
    two = fastmim.finetune(out=tmp_path / "two", devices=2, **settings)
    one = fastmim.finetune(out=tmp_path / "one", **settings)
    learned = weights(two.run)
    off = [
        (learned[name] - value).abs() > 1e-5 + 1e-5 * value.abs() for name, value in weights(one.run).items()
    ]
    # AdamW makes a whole step of a gradient that is zero but for rounding, as that of a few biases is.
    assert torch.cat([part.flatten() for part in off]).float().mean() < 1e-3
    pick = lambda run: [line["loss"] for line in lines(run)]  # noqa: E731
    assert pick(two.run) == pytest.approx(pick(one.run), rel=1e-5)
    assert two.top1 == one.top1
    results = json.loads((two.run / "results.json").read_text())
    assert results["processes"] == 2
    assert results["images"] == 6


def test_the_command_line_says_what_it_does(pretrained, photos, tmp_path, capsys):
    flags = "--image-size 32 --batch-size 8 --steps 2 --workers 0 --val-share 0.25 --labels 4/class"
    run = tmp_path / "run"
    command = ["finetune", "--encoder", str(pretrained), "--data", str(photos), "--out", str(run)]
    assert main([*command, *flags.split()]) == 0
    text = capsys.readouterr().out
    assert "8 labelled images of 2 classes, 6 validation images" in text
    assert "newly initialised: fc_norm" in text
    assert "top-1" in text.splitlines()[-2]
    assert main([*command, *flags.split(), "--resume"]) == 0


def test_timms_own_weights_are_taken_or_the_reason_told(photos, tmp_path, monkeypatch):
    real = timm.create_model
    downloaded = real("vit_tiny_patch16_224", num_classes=0)

    def stand_in(name, pretrained=False, **kwargs):
        model = real(name, **kwargs)
        if pretrained:
            model.load_state_dict(downloaded.state_dict(), strict=False)
        return model

    monkeypatch.setattr(timm, "create_model", stand_in)
    config = FinetuneConfig(encoder="timm:vit_tiny_patch16_224.augreg_in21k", image_size=32)
    start = build_classifier(config, 2)
    state, known = start.model.state_dict(), downloaded.state_dict()
    assert torch.equal(state["blocks.3.attn.qkv.weight"], known["blocks.3.attn.qkv.weight"])
    assert state["pos_embed"].shape == (1, 5, 192)
    assert start.mean == (0.5, 0.5, 0.5)  # of these weights, not ImageNet's

    def offline(name, pretrained=False, **kwargs):
        if pretrained:
            raise OSError("no route to the hub\nand more")
        return real(name, **kwargs)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        UsageError, match=r"timm:resnet10t: its weights cannot be downloaded: no route to the hub$"
    ):
        fastmim.finetune(encoder="timm:resnet10t", data=photos, out=tmp_path / "run", **QUICK)
    assert not (tmp_path / "run").exists()


def test_a_file_that_names_no_model_is_fine_tuned_with_its_name(photos, tmp_path):
    kwargs = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 32}
    name = "vit_base_patch16_224"
    known = timm.create_model(name, num_classes=0, **kwargs).state_dict()
    file = tmp_path / "released.pth"
    torch.save({"model": {**known, "mask_token": torch.zeros(1, 1, 8)}}, file)
    config = FinetuneConfig(encoder=f"mae:{file}", model=name, model_kwargs=kwargs, image_size=64)
    start = build_classifier(config, 2)
    assert torch.equal(
        start.model.state_dict()["blocks.1.attn.qkv.weight"], known["blocks.1.attn.qkv.weight"]
    )
    assert start.model.pos_embed.shape == (1, 17, 32)
    assert start.metadata["method"] == "mae"
    assert any(note.startswith("newly initialised: fc_norm") for note in start.notes)
    with pytest.raises(UsageError, match=f"^model is missing: mae:{file} does not name its model"):
        FinetuneConfig(encoder=f"mae:{file}")
