"""FastMIM-P, channels, own modules and shortened encoders, end to end with networks of seconds."""

import itertools
import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import fastmim
from conftest import TINY, Killed, lines, mostly_slow, same, weights
from fastmim.errors import UsageError
from fastmim.methods.masked.input_masking import InputMasking
from fastmim.pretraining.task import PretrainTask
from fastmim.train.checkpoint_folder import load_checkpoint

SWIN = {
    "model": "swin_tiny_patch4_window7_224",
    "model_kwargs": {"depths": [1, 1, 1, 1], "embed_dim": 24, "num_heads": [1, 2, 2, 4]},
}
STAGES = {  # three sizes; the second changes the batch
    "vit": TINY | {"stages": "32x4s,48x4s@4,64x3s"},
    "swin": TINY | SWIN | {"stages": "64x4s,96x4s@4,128x3s", "decoder": {"depth": 1, "width": 32}},
}
for settings in STAGES.values():
    settings.pop("image_size", None)


@pytest.fixture(scope="module", params=mostly_slow(STAGES, ["vit"]))
def grown(request, photos, tmp_path_factory):
    run = tmp_path_factory.mktemp("grown") / request.param
    result = fastmim.pretrain(data=photos, out=run, checkpoint_every_steps=3, **STAGES[request.param])
    assert result.complete
    assert result.steps == 11
    return STAGES[request.param], run


@pytest.mark.parametrize(
    "after", mostly_slow([4, 5, 9], [5])
)  # as the second stage begins, within it, within the third
def test_a_run_killed_in_any_stage_ends_like_one_that_was_not(grown, photos, tmp_path, monkeypatch, after):
    settings, finished = grown
    forward, calls = InputMasking.forward, []

    def breaks(self, images, mask):
        if self.training:
            calls.append(1)
            if len(calls) > after:
                raise Killed
        return forward(self, images, mask)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(InputMasking, "forward", breaks)
        with pytest.raises(Killed):
            fastmim.pretrain(data=photos, out=run, checkpoint_every_steps=3, **settings)
    assert load_checkpoint(run / "last.ckpt").stage == (1 if after < 8 else 2)
    result = fastmim.pretrain(out=run, resume=True, quiet=True)
    assert result.complete
    assert same(weights(run), weights(finished))
    timed = {"images_per_second", "data_wait", "seconds", "seconds_left", "peak_memory_mb"}
    numbers = [{k: v for k, v in line.items() if k not in timed} for line in lines(run)]
    assert numbers == [{k: v for k, v in line.items() if k not in timed} for line in lines(finished)]


def test_a_run_stopped_at_the_very_end_of_a_stage_goes_on_in_the_next(grown, photos, tmp_path, monkeypatch):
    settings, finished = grown
    run = tmp_path / "run"

    enter = PretrainTask.enter

    def dies(self, stage, say):
        if stage.number:
            raise Killed
        return enter(self, stage, say)

    with monkeypatch.context() as patch:
        patch.setattr(PretrainTask, "enter", dies)
        with pytest.raises(Killed):
            fastmim.pretrain(data=photos, out=run, **settings)
    assert load_checkpoint(run / "last.ckpt").progress.step == 4
    fastmim.pretrain(out=run, resume=True, quiet=True)
    assert same(weights(run), weights(finished))


def test_stages_are_told_and_the_result_has_the_last_size(grown):
    settings, run = grown
    sizes = [int(part.partition("x")[0]) for part in settings["stages"].split(",")]
    told = {(line["stage"], *line["image_size"]) for line in lines(run)}
    assert told == {(number + 1, size, size) for number, size in enumerate(sizes)}
    assert json.loads((run / "encoder.json").read_text())["image_size"] == [sizes[-1]] * 2
    model = fastmim.load_encoder(run).eval()
    assert same(model.state_dict(), weights(run))
    model(torch.randn(1, 3, sizes[-1], sizes[-1]))


@pytest.mark.slow
def test_stages_of_one_size_are_the_run_without_stages(photos, tmp_path):
    fastmim.pretrain(data=photos, out=tmp_path / "one", steps=6, **TINY)
    side = TINY["image_size"]
    growing = {key: value for key, value in TINY.items() if key != "image_size"}
    fastmim.pretrain(data=photos, out=tmp_path / "two", stages=f"{side}x2s,{side}x4s", **growing)
    assert same(weights(tmp_path / "one"), weights(tmp_path / "two"))


def test_a_stage_that_cannot_be_is_told_before_anything_is_written(photos, tmp_path):
    growing = STAGES["vit"] | {"stages": "32x2s,40x2s"}
    with pytest.raises(UsageError, match=r"stages: 40x2s: .*40x40"):
        fastmim.pretrain(data=photos, out=tmp_path / "run", **growing)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes_grow_together(photos, tmp_path):
    settings = STAGES["vit"] | {"devices": 2, "accelerator": "cpu", "data": photos}
    settings["encoder"] = {"pos_embed": "learned"}  # whose optimiser state changes its shape
    result = fastmim.pretrain(out=tmp_path / "run", **settings)
    assert (result.complete, result.steps) == (True, 11)
    assert load_checkpoint(tmp_path / "run" / "last.ckpt").stage == 2


class Pyramid(nn.Module):
    """A module of someone's own: two maps, the last of stride 8."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 4, stride=4)
        self.second = nn.Conv2d(8, 16, 2, stride=2)
        self.head = nn.Linear(16, 10)

    def forward(self, images):
        first = self.first(images)
        return [first, self.second(first.relu())]


def test_a_module_of_ones_own_is_trained_and_loaded(photos, tmp_path, caplog):
    torch.manual_seed(0)
    module = Pyramid()
    before = module.second.weight.detach().clone()
    own = {key: value for key, value in TINY.items() if key not in ("model", "model_kwargs")}
    fastmim.pretrain(model=module, data=photos, out=tmp_path / "run", steps=4, **own)
    origin = json.loads((tmp_path / "run" / "encoder.json").read_text())
    assert origin["model"].endswith("Pyramid")
    assert not torch.equal(module.second.weight, before)
    again = fastmim.load_encoder(tmp_path / "run", model=Pyramid())
    assert same(again.state_dict(), module.state_dict())
    with pytest.raises(UsageError, match="model="):
        fastmim.load_encoder(tmp_path / "run")
    with pytest.raises(UsageError, match=r"no feature map|does not run"):
        fastmim.pretrain(
            model=nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), data=photos, out=tmp_path / "no"
        )


class Frozen(nn.Module):
    def forward(self, images):
        return images[:, :, ::8, ::8]


def number() -> int:
    return 3


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"model": Frozen()}, "no trainable parameter"),
        ({"model": Pyramid(), "model_kwargs": {"width": 3}}, "model_kwargs"),
        ({"model": Pyramid(), "encoder": {"depth": 2}}, r"encoder\.depth"),
        ({"model": f"{__name__}:number"}, "a int"),
        ({"model": f"{__name__}:Pyramid", "model_kwargs": {"width": 3}}, "width"),
        ({"model": "mine.Pyramid"}, "package.module:factory"),
        ({"model": "efficientformer_l1", "image_size": 128}, "sizes that work: 224"),
    ],
)
def test_what_cannot_be_pre_trained_is_told(photos, tmp_path, settings, part):
    own = {key: value for key, value in TINY.items() if key not in ("model", "model_kwargs")}
    with pytest.raises(UsageError, match=part):
        fastmim.pretrain(data=photos, out=tmp_path / "run", **(own | settings))
    assert not (tmp_path / "run").exists()


def test_a_factory_by_name_is_a_model_like_any_other(photos, tmp_path):
    settings = TINY | {"model": f"{__name__}:Pyramid", "model_kwargs": {}}
    fastmim.pretrain(data=photos, out=tmp_path / "run", steps=2, **settings)
    with pytest.raises(UsageError, match="trust_code=True"):
        fastmim.load_encoder(tmp_path / "run")
    loaded = fastmim.load_encoder(tmp_path / "run", trust_code=True)
    assert isinstance(loaded, Pyramid)
    with pytest.raises(UsageError, match="no_such"):
        fastmim.pretrain(data=photos, out=tmp_path / "no", **(settings | {"model": f"{__name__}:no_such"}))


@pytest.mark.parametrize(
    ("settings", "depth", "new"),
    [
        (TINY, 1, "blocks.1."),
        (TINY | SWIN | {"image_size": 64}, [1, 1, 1, 0], "layers.3.blocks."),
        pytest.param(
            TINY | {"model": "resnet10t", "model_kwargs": {}, "image_size": 64},
            [1, 1, 1, 0],
            "layer4.",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_blocks_left_out_are_initialised_anew_and_named(photos, tmp_path, caplog, settings, depth, new):
    settings = settings | {"encoder": {"depth": depth}, "target": {"cell": 8}}
    fastmim.pretrain(data=photos, out=tmp_path / "run", steps=2, **settings)
    stored = weights(tmp_path / "run")
    assert not any(key.startswith(new) for key in stored)
    with caplog.at_level(logging.WARNING, "fastmim"):
        model = fastmim.load_encoder(tmp_path / "run")
    state = model.state_dict()
    assert new.removesuffix(".") in caplog.text.split()[-1].split(",")
    assert any(key.startswith(new) for key in state)
    assert all(torch.equal(state[key], value) for key, value in stored.items())


@pytest.mark.parametrize("depth", [5, [1, 2]])
def test_a_depth_that_the_model_has_not_is_told(photos, tmp_path, depth):
    with pytest.raises(UsageError, match=r"encoder\.depth"):
        fastmim.pretrain(data=photos, out=tmp_path / "run", **(TINY | {"encoder": {"depth": depth}}))


@pytest.mark.parametrize("channels", mostly_slow([1, 4, 13], [13]))
def test_images_of_any_channels(tmp_path, channels):
    folder = tmp_path / "bands"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(12):
        bands = generator.integers(0, 4096, (48, 64, channels), dtype=np.uint16)
        np.save(folder / f"{number}.npy", bands)
    run = tmp_path / "run"
    fastmim.pretrain(data=folder, out=run, steps=2, in_chans=channels, **TINY)
    origin = json.loads((run / "encoder.json").read_text())
    assert origin["in_chans"] == len(origin["mean"]) == len(origin["std"]) == channels
    assert origin["mean"] == pytest.approx([2047.5 / 65535] * channels, rel=0.02)
    assert all(0.005 < std < 0.02 for std in origin["std"])  # noise, which resizing smooths
    assert fastmim.load_encoder(run)(torch.randn(1, channels, 32, 32)).shape[0] == 1
    assert (run / "samples.png").stat().st_size > 0


def test_a_wrong_number_of_channels_ends_with_a_reason(photos, tmp_path):
    with pytest.raises((UsageError, fastmim.RunError), match="channels"):
        fastmim.pretrain(data=photos, out=tmp_path / "run", steps=2, in_chans=13, **TINY)


def test_batch_norms_are_estimated_anew_on_unmasked_images(photos, tmp_path):
    settings = TINY | {"model": "resnet10t", "model_kwargs": {}, "image_size": 64, "steps": 4}
    fastmim.pretrain(data=photos, out=tmp_path / "as-is", **settings)
    fastmim.pretrain(data=photos, out=tmp_path / "anew", bn_recalibrate=True, bn_images=40, **settings)
    old, new = weights(tmp_path / "as-is"), weights(tmp_path / "anew")
    moved = {key for key in old if not torch.equal(old[key], new[key])}
    assert moved
    assert all(key.endswith(("running_mean", "running_var", "num_batches_tracked")) for key in moved)
    assert {key for key in old if key.endswith("running_mean")} <= moved


@pytest.mark.parametrize(
    ("place", "size"),
    mostly_slow(
        itertools.product(["image", "patch"], [8, 16, 24, 64]),
        [("image", 24), ("patch", 8), ("patch", 24), ("patch", 64)],
    ),
)
def test_mask_sizes_below_and_above_the_stride(photos, tmp_path, size, place):
    settings = TINY | {"image_size": 128, "mask": {"size": size, "ratio": 0.6, "place": place}, "steps": 2}
    if place == "patch" and size % 16:
        with pytest.raises(UsageError, match=r"mask\.place"):
            fastmim.pretrain(data=photos, out=tmp_path / "run", **settings)
        return
    result = fastmim.pretrain(data=photos, out=tmp_path / "run", **settings)
    assert np.isfinite(result.held_out_loss)


def test_grey_photos_take_one_channel(tmp_path):
    folder = tmp_path / "grey"
    folder.mkdir()
    for number in range(11):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    fastmim.pretrain(data=folder, out=tmp_path / "run", steps=2, in_chans=1, **TINY)
    assert json.loads((tmp_path / "run" / "encoder.json").read_text())["in_chans"] == 1
