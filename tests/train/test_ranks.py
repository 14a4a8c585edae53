"""Two real processes of one run: what befalls one of them, both answer alike, and as one process would."""

import json
import shutil
import subprocess
import sys
from functools import partial

import pytest
import torch

import fastmim
from conftest import TINY, USUAL, lines, weights
from fastmim.train.checkpoint_folder import load_checkpoint
from fastmim.train.run_files import LAST

SETTINGS = {**TINY, "micro_batch": 4, "precision": "32-true", "accelerator": "cpu", "log_every_steps": 5}
RESNET = {**SETTINGS, "model": "resnet10t", "model_kwargs": {}, "image_size": 64}

# Each process notes each step it made and each return, and does what it is told at a step.
SCRIPT = """
import hashlib, json, os, signal, sys, time
import torch, fastmim
from fastmim.train import autotune
from fastmim.train.loop import Loop

CASE = json.load(open({case!r}))
step, go_back = Loop._step, Loop._go_back
spoilt = []

def note(rank, **what):
    with open({log!r} + str(rank), "a") as file:
        print(json.dumps(what), file=file)

def digest(module):
    total = hashlib.sha256()
    for parameter in module.parameters():
        total.update(parameter.detach().numpy().tobytes())
    return total.hexdigest()

def watched(self, micro_batches, lr):
    rank, number = self.fabric.global_rank, self.progress.step
    micro_batches = list(micro_batches)
    if rank == CASE["rank"] and number in CASE["nan"] and number not in spoilt:
        spoilt.append(number)
        for arguments, _ in micro_batches:
            arguments[0].fill_(torch.nan)
    if rank == CASE["rank"] and number == CASE["stop"]:
        os.kill(os.getpid(), signal.SIGTERM)
    step(self, micro_batches, lr)
    note(rank, step=number, lr=lr, weights=digest(self.module))

def late(self):
    rank = self.fabric.global_rank
    if rank == CASE["late"]:
        time.sleep(1)
    go_back(self)
    note(rank, back=self.progress.step, scale=self.progress.lr_scale)

settled = autotune._settled

def noted(fabric, *arguments):
    note(fabric.global_rank, settled=True)
    return settled(fabric, *arguments)

Loop._step, Loop._go_back, autotune._settled = watched, late, noted
if __name__ == "__main__":
    fastmim.pretrain(**CASE["settings"])
"""


def run_two(folder, settings, rank=1, nan=(), stop=None, late=None):
    """Run two processes; return what each noted."""
    case, script = folder / "case.json", folder / "script.py"
    settings = {**settings, "devices": 2, "quiet": True}
    told = {"settings": settings, "rank": rank, "nan": list(nan), "stop": stop, "late": late}
    case.write_text(json.dumps(told, default=str))
    script.write_text(SCRIPT.format(case=str(case), log=str(folder / "rank")))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    logs = [folder / f"rank{number}" for number in (0, 1)]
    noted = [[json.loads(line) for line in log.read_text().splitlines()] for log in logs]
    if settings["kernels"] == USUAL:
        noted = [[line for line in lines if "settled" not in line] for lines in noted]
    for log in logs:
        log.unlink()
    return noted


@pytest.fixture
def two(tmp_path):
    return partial(run_two, tmp_path)


@pytest.fixture(scope="module")
def damaged(photos, tmp_path_factory):
    """The settings of a run with a damaged image, the run of two processes, and what each noted.

    A signal to the second stops both.
    """
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "data").mkdir()
    for number, file in enumerate(sorted(photos.rglob("*.jpg"))):
        content = file.read_bytes() if number != 7 else b"\xff\xd8 no more"
        (folder / "data" / f"{number:02d}.jpg").write_bytes(content)
    settings = {**SETTINGS, "data": folder / "data", "steps": 20, "max_unreadable": 0.2}
    return settings, folder / "two", run_two(folder, {**settings, "out": folder / "two"}, stop=7)


def test_a_signal_to_one_stops_both(damaged):
    _, _, (first, second) = damaged
    assert first == second  # weights and rates after each step, bit for bit
    assert [line["step"] for line in first] == [*range(10)]  # to where they next ask one another


def test_a_damaged_image_on_one_process_is_replaced_as_in_one(damaged, tmp_path):
    """One process goes on where two were stopped, and ends as one alone."""
    settings, stopped, _ = damaged
    run = shutil.copytree(stopped, tmp_path / "two")
    assert load_checkpoint(run / LAST).world_size == 2
    assert fastmim.pretrain(out=run, resume=True, devices=1, quiet=True).complete
    fastmim.pretrain(out=tmp_path / "one", **settings)
    found = weights(run)
    for name, value in weights(tmp_path / "one").items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4)  # of 20 steps
    loss = [[line["loss"] for line in lines(folder)] for folder in (tmp_path / "one", run)]
    assert loss[0] == pytest.approx(loss[1], rel=1e-5)
    named = [(folder / "skipped.jsonl").read_text() for folder in (tmp_path / "one", run)]
    assert "07.jpg" in named[0]
    assert named[0] == named[1]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_running_statistics_that_one_spoils_take_both_back(photos, tmp_path, two, rank):
    """Step 14 is the last before the processes look at what they hold."""
    settings = {**RESNET, "data": photos, "out": tmp_path / "run", "steps": 20, "checkpoint_every_steps": 5}
    first, second = two(settings, rank=rank, nan=[14])
    assert first == second
    (back,) = [line for line in first if "back" in line]
    assert back == {"back": 10, "scale": 0.5}
    assert [line["step"] for line in first if "step" in line] == [*range(15), *range(10, 20)]
    assert all(torch.isfinite(value).all() for value in weights(tmp_path / "run").values())


@pytest.mark.slow
@pytest.mark.parametrize("late", [0, 1])
def test_both_go_back_to_the_same_whoever_is_late(photos, tmp_path, two, late):
    settings = {**SETTINGS, "data": photos, "out": tmp_path / "run", "steps": 25, "checkpoint_every_steps": 5}
    first, second = two({**settings, "optim": {"bad_steps": 5}}, nan=range(10, 20), late=late)
    assert first == second
    assert [line for line in first if "back" in line] == [
        {"back": 10, "scale": 0.5},
        {"back": 15, "scale": 0.25},  # steps 10 to 14 are good by then, and 15 to 19 are not
    ]
    assert load_checkpoint(tmp_path / "run" / LAST).progress.lr_scale == 0.25


@pytest.mark.slow
def test_both_go_on_as_if_nothing_had_been(damaged, tmp_path, two):
    settings, run, (first, _) = damaged
    run = shutil.copytree(run, tmp_path / "run")
    again, alike = two({**settings, "out": run, "resume": True})
    assert again == alike
    whole, _ = two({**settings, "out": tmp_path / "whole"})
    assert [*first, *again] == whole


@pytest.mark.slow
def test_both_take_the_kernels_that_the_first_has_found(photos, tmp_path, two, monkeypatch):
    monkeypatch.setenv("FASTMIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    settings = {
        **SETTINGS,
        "data": photos,
        "out": tmp_path / "run",
        "steps": 5,
        "kernels": {"compile": "none"},
    }
    first, second = two(settings)
    assert first[0] == {"settled": True}
    assert first[1:] == second
    assert len(second) == 5
    kernels = load_checkpoint(tmp_path / "run" / LAST).choices.kernels
    assert kernels.attention in ("fused", "plain")
