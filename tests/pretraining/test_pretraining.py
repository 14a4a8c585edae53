"""The main job, end to end, with a network small enough for seconds."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
import timm
import torch
import yaml

import fastmim
from conftest import TINY, Killed, lines, mostly_slow, same, weights
from fastmim.cli.entry import main
from fastmim.errors import RunError, UsageError
from fastmim.methods.base import Reconstruction
from fastmim.methods.masked.input_masking import InputMasking
from fastmim.pretraining import RUN_FILES
from fastmim.train.checkpoint_folder import load_checkpoint

# Runs whose micro-batches are the same for one process and for two.
EVEN = {**TINY, "micro_batch": 4, "precision": "32-true"}


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory):
    """A run of ten steps that nothing disturbed."""
    run = tmp_path_factory.mktemp("finished") / "run"
    result = fastmim.pretrain(data=photos, out=run, steps=10, **TINY)
    assert result.complete
    assert result.steps == 10
    return run


def test_it_writes_the_listed_files_and_no_others(finished):
    names = {path.name for path in finished.iterdir()}
    events = {name for name in names if name.startswith("events.out.tfevents.")}
    assert len(events) == 1
    assert names - events == set(RUN_FILES)
    assert (finished / "samples.png").read_bytes().startswith(b"\x89PNG")
    page = (finished / "report.html").read_text()
    assert "constant baseline" in page
    assert "data:image/png;base64," in page
    assert 'src="http' not in page


def test_metrics_have_what_is_promised(finished):
    metrics = lines(finished)
    assert [line["step"] for line in metrics] == [2, 4, 5, 6, 8, 10]
    wanted = {"step", "epoch", "loss", "lr", "images_per_second", "data_wait", "peak_memory_mb"}
    for line in metrics:
        assert wanted <= line.keys()
        assert math.isfinite(line["loss"])
        assert 0 <= line["data_wait"] <= 1
    measured = [line["step"] for line in metrics if "held_out_loss" in line]
    assert measured == [5, 10]
    assert metrics[-1]["trivial_loss"] > 0


def test_timm_alone_takes_the_encoder_strictly(finished):
    origin = json.loads((finished / "encoder.json").read_text())
    assert origin["image_size"] == [32, 32]
    assert origin["method"] == "fastmim"
    assert origin["target"] == "hog"
    assert set(origin) >= {"model", "kwargs", "in_chans", "mean", "std", "fastmim_version"}
    model = timm.create_model(origin["model"], **origin["kwargs"])
    model.load_state_dict(weights(finished), strict=True)


def test_load_encoder_resamples_and_says_what_is_new(finished, caplog):
    model = fastmim.load_encoder(finished, image_size=64, num_classes=10).eval()
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 10)
    assert caplog.text.split()[-1] == "head"
    same_size = fastmim.load_encoder(finished / "encoder.safetensors").eval()
    assert same(same_size.state_dict(), weights(finished))
    assert timm.data.resolve_model_data_config(model)["input_size"] == (3, 64, 64)


def test_the_same_seed_gives_the_same_weights_and_another_does_not(finished, photos, tmp_path):
    fastmim.pretrain(data=photos, out=tmp_path / "again", steps=10, **TINY)
    assert same(weights(tmp_path / "again"), weights(finished))
    fastmim.pretrain(data=photos, out=tmp_path / "other", steps=10, seed=1, **TINY)
    assert not same(weights(tmp_path / "other"), weights(finished))


def test_the_stored_configuration_repeats_the_run(finished, tmp_path):
    stored = yaml.safe_load((finished / "config.yaml").read_text())
    assert stored["mask"]["size"] == 16  # what followed from the encoder is written out
    fastmim.pretrain(config=finished / "config.yaml", out=tmp_path / "run", quiet=True)
    assert same(weights(tmp_path / "run"), weights(finished))


def test_neither_workers_nor_logging_change_the_weights(finished, photos, tmp_path):
    settings = {**TINY, "workers": 2, "log_every_steps": 5, "evaluations": 1}
    fastmim.pretrain(data=photos, out=tmp_path / "run", steps=10, **settings)
    assert same(weights(tmp_path / "run"), weights(finished))


@pytest.mark.parametrize(
    "model", mostly_slow(["vit_tiny_patch16_224", "resnet10t"], ["vit_tiny_patch16_224"])
)
def test_the_micro_batch_hardly_matters(photos, tmp_path, model):
    losses = []
    settings = TINY if model.startswith("vit") else {**TINY, "model_kwargs": {}, "image_size": 64}
    for size in (8, 3):
        out = tmp_path / str(size)
        run = {**settings, "model": model, "micro_batch": size, "log_every_steps": 1}
        fastmim.pretrain(data=photos, out=out, steps=1, **run)
        losses.append(lines(out)[0]["loss"])
    # A batch norm sees other batches, everything else the very same numbers.
    assert losses[0] == pytest.approx(losses[1], rel=1e-4 if model.startswith("vit") else 0.3)


@pytest.mark.parametrize("after", mostly_slow([1, 5, 7], [5]))
def test_a_run_that_broke_off_ends_like_one_that_did_not(finished, photos, tmp_path, monkeypatch, after):
    forward, calls = InputMasking.forward, []

    def breaks(self, images, mask):
        if self.training:
            calls.append(1)
            if len(calls) > after:
                raise Killed
        return forward(self, images, mask)

    monkeypatch.setattr(InputMasking, "forward", breaks)
    settings = {**TINY, "checkpoint_every_steps": 3}
    with pytest.raises(Killed):
        fastmim.pretrain(data=photos, out=tmp_path / "run", steps=10, **settings)
    monkeypatch.setattr(InputMasking, "forward", forward)
    result = fastmim.pretrain(out=tmp_path / "run", resume=True, quiet=True)
    assert result.complete
    assert same(weights(tmp_path / "run"), weights(finished))
    keys = ("step", "loss", "lr", "gradient_norm", "held_out_loss")
    pick = lambda run: [{key: line.get(key) for key in keys} for line in lines(run)]  # noqa: E731
    assert pick(tmp_path / "run") == pick(finished)


@pytest.mark.parametrize("kills", [1, pytest.param(5, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "model",
    [
        {"model": "vit_tiny_patch16_224", "model_kwargs": TINY["model_kwargs"]},
        pytest.param(
            {
                "model": "swin_tiny_patch4_window7_224",
                "model_kwargs": {"embed_dim": 24, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4]},
            },
            marks=pytest.mark.slow,
        ),
    ],
    ids=["vit", "swin"],
)
def test_kill_minus_nine_loses_nothing(photos, tmp_path, kills, model):
    settings = {**TINY, **model, "steps": 40, "checkpoint_every_steps": 3, "data": str(photos), "workers": 1}
    settings.pop("quiet")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    command = [
        sys.executable,
        "-m",
        "fastmim",
        "pretrain",
        "--config",
        str(tmp_path / "config.yaml"),
        "--resume-or-begin",
    ]
    for number in range(kills):
        process = subprocess.Popen(
            [*command, "--out", str(tmp_path / "killed")], stdout=subprocess.PIPE, text=True
        )
        for line in process.stdout:
            if line.startswith("step ") and int(line.split("/")[0][5:]) >= 6 * (number + 1):
                break
        time.sleep(0.07 * number)
        process.kill()
        process.wait()
    assert (tmp_path / "killed" / "last.ckpt").exists()
    assert not (tmp_path / "killed" / "report.html").exists()
    for name in ("killed", "whole"):
        assert main([*command[3:], "--out", str(tmp_path / name)]) == 0
    assert same(weights(tmp_path / "killed"), weights(tmp_path / "whole"))
    assert not list((tmp_path / "killed").glob("*.part"))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_writes_a_checkpoint_and_ends_cleanly(photos, tmp_path, number, code):
    settings = {**TINY, "steps": 3000, "data": str(photos), "out": str(tmp_path / "run"), "workers": 1}
    settings.pop("quiet")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "fastmim", "pretrain", "--config", str(tmp_path / "config.yaml")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    for line in process.stdout:
        if line.startswith("step "):
            break
    os.killpg(process.pid, number)  # the loader's processes get it, too
    output, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "--resume" in output
    assert "Traceback" not in errors
    step = load_checkpoint(tmp_path / "run" / "last.ckpt").progress.step
    assert 2 <= step < 3000
    assert (tmp_path / "run" / "encoder.safetensors").exists()


def test_a_directory_with_a_run_is_not_overwritten_by_accident(finished, photos, tmp_path):
    before = (finished / "last.ckpt").read_bytes()
    with pytest.raises(UsageError, match="--resume resumes it, --overwrite deletes it"):
        fastmim.pretrain(data=photos, out=finished, steps=2, **TINY)
    assert (finished / "last.ckpt").read_bytes() == before
    run = tmp_path / "run"
    fastmim.pretrain(data=photos, out=run, steps=2, **TINY)
    (run / "notes.txt").write_text("mine")
    fastmim.pretrain(data=photos, out=run, steps=3, overwrite=True, **TINY)
    assert (run / "notes.txt").read_text() == "mine"
    assert lines(run)[-1]["step"] == 3


def test_a_wrong_model_does_not_delete_the_run_it_would_have_overwritten(photos, tmp_path):
    run = tmp_path / "run"
    fastmim.pretrain(data=photos, out=run, steps=2, **TINY)
    with pytest.raises(UsageError):
        fastmim.pretrain(data=photos, out=run, overwrite=True, **{**TINY, "model": "nothing"})
    assert (run / "last.ckpt").exists()


def test_a_resumed_run_must_be_the_same_run(finished, photos, tmp_path):
    with pytest.raises(UsageError, match=r"mask\.ratio = 0\.5 differs from the 0\.75"):
        fastmim.pretrain(out=finished, resume=True, quiet=True, mask={"ratio": 0.5})
    assert fastmim.pretrain(out=finished, resume=True, quiet=True).complete  # done already
    with pytest.raises(UsageError, match="no longer holds the images"):
        fastmim.pretrain(data="demo:photos", out=finished, resume=True, quiet=True)


def not_a_number(monkeypatch, when):
    """Let the loss be NaN in the training steps (counted from 1) for which ``when`` holds."""
    forward, calls = InputMasking.forward, []

    def spoilt(self, images, mask):
        result = forward(self, images, mask)
        if not self.training:
            return result
        calls.append(1)
        factor = float("nan") if when(len(calls)) else 1.0
        return Reconstruction(result.loss * factor, *result[1:])

    monkeypatch.setattr(InputMasking, "forward", spoilt)


def test_a_bad_step_is_skipped_and_counted(photos, tmp_path, monkeypatch):
    not_a_number(monkeypatch, lambda call: call == 3)
    result = fastmim.pretrain(data=photos, out=tmp_path, steps=6, **TINY)
    assert result.complete
    assert lines(tmp_path)[-1]["skipped_steps"] == 1
    losses = {line["step"]: line["loss"] for line in lines(tmp_path)}
    assert [step for step, loss in losses.items() if loss is None] == [3]  # a window of that step alone
    assert all(torch.isfinite(value).all() for value in weights(tmp_path).values())


def test_many_bad_steps_go_back_to_the_last_good_state_at_a_lower_rate(photos, tmp_path, monkeypatch):
    not_a_number(monkeypatch, lambda call: 5 <= call <= 8)
    settings = {**TINY, "optim": {"bad_steps": 4}, "checkpoint_every_steps": 4}
    result = fastmim.pretrain(data=photos, out=tmp_path, steps=10, **settings)
    assert result.complete
    last = lines(tmp_path)[-1]
    assert last["rollbacks"] == 1
    progress = load_checkpoint(tmp_path / "last.ckpt").progress
    assert progress.lr_scale == 0.5
    assert progress.step == 10


def test_a_run_that_never_recovers_fails_clearly(photos, tmp_path, monkeypatch):
    not_a_number(monkeypatch, lambda call: call > 4)
    settings = {**TINY, "optim": {"bad_steps": 2, "rollbacks": 2}, "checkpoint_every_steps": 2}
    with pytest.raises(RunError, match=r"not finite after 2 returns .*optim.base_lr"):
        fastmim.pretrain(data=photos, out=tmp_path, steps=20, **settings)
    state = load_checkpoint(tmp_path / "last.ckpt")
    assert all(torch.isfinite(value).all() for value in state.module.values())


@pytest.mark.slow
@pytest.mark.parametrize("teacher", [{}, {"distill": {"teacher": "none", "model": "test_convnext"}}])
def test_two_processes_train_the_model_that_one_trains(photos, tmp_path, teacher):
    """The same crops, masks and weights, to float32's rounding, whoever computes which part of a batch."""
    settings = {**EVEN, "steps": 4, "accelerator": "cpu", "data": str(photos), **teacher}
    result = fastmim.pretrain(out=tmp_path / "run", devices=2, **settings)
    assert (result.complete, result.steps) == (True, 4)
    assert {path.name for path in (tmp_path / "run").iterdir()} >= set(RUN_FILES)
    assert load_checkpoint(tmp_path / "run" / "last.ckpt").world_size == 2
    assert lines(tmp_path / "run")[-1]["step"] == 4
    fastmim.pretrain(out=tmp_path / "one", **settings)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "run")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(photos, tmp_path, monkeypatch):
    settings = {**EVEN, "steps": 6, "accelerator": "cpu", "data": str(photos), "checkpoint_every_steps": 3}
    forward, calls = InputMasking.forward, []

    def breaks(self, images, mask):
        if self.training:
            calls.append(1)
            if len(calls) > 2 * 4:  # in the fifth step of two micro-batches
                raise Killed
        return forward(self, images, mask)

    monkeypatch.setattr(InputMasking, "forward", breaks)
    with pytest.raises(Killed):
        fastmim.pretrain(out=tmp_path / "run", **settings)
    monkeypatch.setattr(InputMasking, "forward", forward)
    result = fastmim.pretrain(out=tmp_path / "run", devices=2, resume=True, quiet=True)
    assert (result.complete, result.steps) == (True, 6)
    fastmim.pretrain(out=tmp_path / "one", **settings)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "run")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-5)
    seen = [[line["loss"] for line in lines(tmp_path / run)] for run in ("one", "run")]
    assert seen[0] == pytest.approx(seen[1], rel=1e-5)


@pytest.mark.gpu
def test_a_gpu_run_resumes_bit_for_bit(photos, tmp_path):
    settings = {**TINY, "accelerator": "cuda", "checkpoint_every_steps": 4}
    for name in ("a", "b"):
        fastmim.pretrain(data=photos, out=tmp_path / name, steps=12, **settings)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
