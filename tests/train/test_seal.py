"""Damaged, missing and foreign checkpoints: each is refused, or loads bit for bit as it was written."""

import os
import pickle
import random
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastmim
from conftest import TINY, lines, mostly_slow, same, weights
from fastmim.errors import RunError, UsageError
from fastmim.train.checkpoint import read_state
from fastmim.train.checkpoint_folder import adopt, newest_checkpoint, replace_last
from fastmim.train.run_files import LAST, older_checkpoints
from fastmim.train.seal import Damaged, check_sealed, sealed_step, write_sealed


def bits(value):
    """A checkpoint as plain values that are equal only where every bit is."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [bits(item) for item in value]
    return struct.pack("<d", value) if isinstance(value, float) else value


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory):
    """A finished run of six steps that kept three checkpoints."""
    run = tmp_path_factory.mktemp("whole") / "run"
    settings = {"steps": 6, "checkpoint_every_steps": 2, "keep_checkpoints": 3, "precision": "32-true"}
    fastmim.pretrain(data=photos, out=run, **TINY, **settings)
    return run


@pytest.fixture
def run(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "run"))


def plain(state, file):
    """A checkpoint as earlier versions wrote it: without a seal."""
    torch.save(state, file)
    return file


def parts_of(data: bytes, file: Path) -> dict[str, range]:
    """The byte ranges of a zip archive's parts, from the format's description."""
    parts = {}
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        directory = archive.start_dir
    for entry in entries:
        start = entry.header_offset
        name, extra = struct.unpack("<HH", data[start + 26 : start + 30])
        content = start + 30 + name + extra
        parts[f"header of {entry.filename}"] = range(start, content)
        parts[f"content of {entry.filename}"] = range(content, content + entry.file_size)
    end = data.rindex(b"PK\x05\x06")
    parts["directory"] = range(directory, end)
    parts["end"] = range(end, end + 22)
    parts["seal"] = range(end + 22, len(data))
    return parts


@pytest.mark.parametrize("most", mostly_slow([1, 3], [1]))
@pytest.mark.parametrize("form", mostly_slow(["sealed", "of an earlier version"], ["sealed"]))
def test_no_flipped_bit_changes_what_is_loaded(whole, tmp_path, form, most):
    file = tmp_path / LAST
    shutil.copy(whole / LAST, file)
    truth = bits(read_state(file))
    sealed = form == "sealed"
    if not sealed:
        plain(read_state(whole / LAST), file)
    data = bytearray(file.read_bytes())
    generator = np.random.default_rng(0)
    places = [int(place) for place in generator.integers(0, len(data), most * (80 if sealed else 20))]
    parts = parts_of(bytes(data), file)
    assert len(parts) > 80  # two for each of the tensors, and what is about them
    for part in parts.values():
        places += (
            [int(place) for place in generator.choice(part, min(most, len(part)), replace=False)]
            if part
            else []
        )
    places += [*parts["end"], *parts["seal"]]
    refused = 0
    for place in places:
        bit = 1 << int(generator.integers(8))
        with open(file, "r+b") as damaged:
            damaged.seek(place)
            damaged.write(bytes([data[place] ^ bit]))
        try:
            assert bits(read_state(file)) == truth, place
        except Damaged:
            refused += 1
        with open(file, "r+b") as damaged:
            damaged.seek(place)
            damaged.write(bytes([data[place]]))
    assert bits(read_state(file)) == truth
    assert refused == len(places) if sealed else refused > len(places) / 2


def test_no_cut_checkpoint_is_loaded(whole, tmp_path):
    data = (whole / LAST).read_bytes()
    file = tmp_path / LAST
    for length in {
        0,
        1,
        21,
        22,
        255,
        256,
        *range(1, len(data), len(data) // 50),
        *range(len(data) - 130, len(data)),
    }:
        file.write_bytes(data[:length])
        with pytest.raises(Damaged, match="damaged"):
            read_state(file)
    file.write_bytes(data + b"\0")
    with pytest.raises(Damaged):
        read_state(file)
    file.write_bytes(data)
    check_sealed(file)


def test_torch_alone_reads_a_sealed_checkpoint(whole):
    alone = torch.load(whole / LAST, weights_only=True)
    assert bits(alone) == bits(read_state(whole / LAST))
    assert sealed_step(whole / LAST) == alone["progress"]["step"] == 6


def test_the_step_that_a_seal_names_is_checked(whole, tmp_path):
    file = tmp_path / LAST
    file.write_bytes((whole / LAST).read_bytes().replace(b"checkpoint step 6 ", b"checkpoint step 7 "))
    with pytest.raises(Damaged, match="checksum"):
        check_sealed(file)


def test_kept_checkpoints_are_files_of_their_own(whole):
    kept = [whole / LAST, *older_checkpoints(whole)]
    assert [read_state(file)["progress"]["step"] for file in kept] == [6, 4, 2]
    assert len({file.stat().st_ino for file in kept}) == 3


def cut(last):
    os.truncate(last, 1000)


def flip(last):
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 4
    last.write_bytes(data)


def dangle(last):
    last.unlink()
    last.symlink_to(last.parent / "gone")


def pipe(last):
    last.unlink()
    os.mkfifo(last)


def other(state):
    def write(last):
        last.unlink()
        torch.save(state, last)

    return write


DAMAGE = {
    "cut": (cut, "damaged"),
    "flipped": (flip, "checksum"),
    "empty": (lambda last: last.write_bytes(b""), "damaged"),
    "deleted": (Path.unlink, "missing"),
    "dangling": (dangle, "missing"),
    "a pipe": (pipe, "not a file"),
    "a pickle": (lambda last: last.write_bytes(pickle.dumps({"module": {}})), "damaged"),
    "nothing": (other({}), "not a checkpoint of a run"),
    "a tensor": (other(torch.zeros(3)), "not a checkpoint of a run"),
    "a list": (other([1]), "not a checkpoint of a run"),
}


@pytest.mark.parametrize("kind", mostly_slow(DAMAGE, ["cut", "flipped", "deleted", "a pipe", "nothing"]))
def test_a_run_goes_on_from_its_newest_sound_checkpoint(whole, run, kind, capsys):
    damage, reason = DAMAGE[kind]
    damage(run / LAST)
    before = [read_state(file)["progress"]["step"] for file in older_checkpoints(run)]
    assert before == [4, 2]  # damage to the last one is none to these
    assert fastmim.pretrain(out=run, resume=True, quiet=False).complete
    told = capsys.readouterr().out
    assert f"resuming from checkpoints/step-000000004.ckpt, since {LAST} is" in told
    assert reason in told
    assert "resumed at step 4 of 6" in told
    assert same(weights(run), weights(whole))
    assert [line["step"] for line in lines(run)] == [line["step"] for line in lines(whole)]


def test_a_folder_in_its_place_is_named(run):
    (run / LAST).unlink()
    (run / LAST).mkdir()
    with pytest.raises(RunError, match=r"last\.ckpt is a folder: remove it to resume from .*step-0+4\.ckpt"):
        fastmim.pretrain(out=run, resume=True, quiet=True)


def test_a_damaged_older_one_is_passed_over(run):
    (run / LAST).unlink()
    flip(older_checkpoints(run)[0])
    found = newest_checkpoint(run)
    assert found.checkpoint.progress.step == 2
    assert "last.ckpt is missing" in found.note
    assert "step-000000004.ckpt is damaged" in found.note
    adopt(run, found)
    assert (run / LAST).samefile(found.file)
    assert older_checkpoints(run) == [found.file]


def test_a_run_without_a_sound_checkpoint_is_never_begun_again(run):
    for file in (run / LAST, *older_checkpoints(run)):
        flip(file)
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    for way in (True, "or-begin"):
        with pytest.raises(RunError, match=r"no intact checkpoint.*last\.ckpt is damaged.*step-0+2\.ckpt is"):
            fastmim.pretrain(out=run, resume=way, quiet=True)
    shutil.rmtree(run / "checkpoints")
    (run / LAST).unlink()
    with pytest.raises(UsageError, match=r"last\.ckpt is missing, and there is no older checkpoint"):
        fastmim.pretrain(out=run, resume=True, quiet=True)
    assert all(file.read_bytes() == before[file] for file in run.rglob("*") if file.is_file())


PLACES: dict[str, tuple[dict[str, Any], str]] = {
    "step 10**9": (
        {"progress": {"step": 10**9}},
        "is at step 1000000000 in stage 1, which has",
    ),
    "stage 99": ({"stage": 99}, "is in stage 100, but the run has 1"),
    "step -1": ({"progress": {"step": -1}}, "progress.step"),
    "stage -1": ({"stage": -1}, "stage"),
    "step of text": ({"progress": {"step": "6"}}, "progress.step"),
    "step of a float": ({"progress": {"step": 2.5}}, "progress.step"),
    "step of a bool": ({"progress": {"step": True}}, "progress.step"),
    "rate of nan": ({"progress": {"lr_scale": float("nan")}}, "progress.lr_scale"),
    "counters": ({"progress": {"counters": [0.0]}}, "progress.counters"),
    "metrics": ({"metrics_bytes": -5}, "metrics_bytes"),
    "choices": ({"choices": {"precision": "8-bit"}}, "choices.precision"),
    "world": ({"world_size": 0}, "world_size"),
    "module": ({"module": [1, 2]}, "module"),
    "no optimiser": ({"optimizer": {}}, "optimizer"),
}


@pytest.mark.parametrize(
    "kind",
    mostly_slow(PLACES, ["step 10**9", "stage 99", "step of text", "choices", "module", "no optimiser"]),
)
def test_a_place_that_cannot_be_is_one_line(run, kind):
    change, part = PLACES[kind]
    state = torch.load(run / LAST, weights_only=True)
    for key, value in change.items():
        nested = isinstance(value, dict) and value and isinstance(state[key], dict)
        state[key] = state[key] | value if nested else value
    replace_last(run, lambda file: write_sealed(state, 6, file), keep=1)  # sealed, and sound but for that
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(RunError) as error:
        fastmim.pretrain(out=run, resume=True, quiet=True)
    assert part in str(error.value)
    assert LAST in str(error.value)
    assert "\n" not in str(error.value)


def nan(state):
    next(iter(state["module"].values())).fill_(float("nan"))


def narrow(state):
    name = next(name for name, tensor in state["module"].items() if tensor.ndim == 2)
    state["module"][name] = state["module"][name][:, :3].clone()


def lacking(state):
    state["module"].popitem()


def surplus(state):
    state["module"]["more"] = torch.zeros(2)


def sixteen(state):
    state["module"] = {name: tensor.half() for name, tensor in state["module"].items()}


def mixed_up(state):
    state["optimizer"]["param_groups"].pop()


@pytest.mark.parametrize("change", [nan, narrow, lacking, surplus, sixteen, mixed_up])
def test_weights_that_are_not_the_runs_are_one_line(run, change):
    state = torch.load(run / LAST, weights_only=True)
    change(state)
    replace_last(run, lambda file: write_sealed(state, 6, file), keep=1)
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    with pytest.raises(RunError) as error:
        fastmim.pretrain(out=run, resume=True, quiet=True)
    assert "\n" not in str(error.value)
    assert "holds no intact" in str(error.value) or "not of this run" in str(error.value)


CONTENTS = {
    "random": random.Random(0).randbytes(5000),
    "empty": b"",
    "lists": b"[1]\n" * 100,
    "utf16": b"\xff\xfe{}",
    "cut": b'{"step": 1',
    "deep": b"{" * 5000,
    "values": b'"a"\n5\nnull\n',
}


@pytest.mark.parametrize("kind", mostly_slow(CONTENTS, ["random", "lists", "cut"]))
def test_metrics_of_anything_cost_no_run(whole, run, kind):
    content = CONTENTS[kind]
    (run / "metrics.jsonl").write_bytes(content)
    (run / "skipped.jsonl").write_bytes(content)
    older = older_checkpoints(run)[0]
    os.replace(older, run / LAST)  # so that there are steps to go
    assert fastmim.pretrain(out=run, resume=True, quiet=True).complete
    assert same(weights(run), weights(whole))


def test_a_checkpoint_of_an_earlier_version_goes_on(whole, run, capsys):
    state = read_state(older_checkpoints(run)[0])
    shutil.rmtree(run / "checkpoints")
    del state["version"]  # of the first form, which had its digests beside the rest
    state |= state.pop("identity")
    state["leg"] = state.pop("stage")
    state["choices"].pop("kernels")  # the first ones named none
    state["optimizer"]["param_groups"] = [dict(group) for group in state["optimizer"]["param_groups"]]
    (run / LAST).unlink()
    plain(state, run / LAST)
    assert fastmim.pretrain(out=run, resume=True).complete
    assert "started by an earlier version" in capsys.readouterr().out
    assert [line["step"] for line in lines(run)][-1] == 6
    assert sealed_step(run / LAST) == 6


@pytest.mark.parametrize("begun", [False, True])
def test_a_mistyped_folder_is_no_new_run(whole, tmp_path, begun):
    run = Path(shutil.copytree(whole, tmp_path / "runs" / "swin_128"))
    wrong = tmp_path / "runs" / "swin128"
    if begun:
        wrong.mkdir()
    for name in (wrong, tmp_path / "run" / "swin_128"):
        with pytest.raises(UsageError) as error:
            fastmim.pretrain(data="demo:digits", out=name, resume=True, quiet=True, steps=1)
        assert str(error.value).startswith(f"out: there is no run in {name} to resume, but in {run}; ")
        assert "--resume-or-begin" in str(error.value)
        assert not name.exists() or not any(name.iterdir())


def test_a_checkpoint_of_a_newer_version_is_refused_in_a_line(run):
    state = torch.load(run / LAST, weights_only=True)
    shutil.rmtree(run / "checkpoints")
    replace_last(run, lambda file: write_sealed(state | {"version": 99}, 6, file), keep=1)
    with pytest.raises(RunError, match=r"last\.ckpt was written by a newer version of fastmim \(format 99"):
        fastmim.pretrain(out=run, resume=True, quiet=True)
