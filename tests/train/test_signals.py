"""Signals, lost processes and lost parents: a run stops, at the second signal at once, and leaves nobody."""

import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.multiprocessing.spawn import ProcessRaisedException

import fastmim
from conftest import TINY, mostly_slow
from fastmim.cli.entry import main
from fastmim.errors import Interrupted, RunError, UsageError
from fastmim.methods.masked.input_masking import InputMasking
from fastmim.train.checkpoint_folder import load_checkpoint
from fastmim.train.processes import launch_processes
from fastmim.train.run_files import LAST
from fastmim.train.signals import STOPPING, StopRequest, interruptible

NAMES = [signal.Signals(number).name for number in STOPPING]


def send(number):
    os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def handlers_are_as_before():
    """As usual at first, also where the tests run under nohup or in the background, and the same after."""
    outside = {number: signal.getsignal(number) for number in STOPPING}
    for number in STOPPING:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    before = [signal.getsignal(number) for number in STOPPING]
    yield
    after = [signal.getsignal(number) for number in STOPPING]
    for number, handler in outside.items():
        signal.signal(number, handler)
    assert after == before


@pytest.mark.parametrize("number", STOPPING, ids=NAMES)
def test_the_first_signal_is_noted_and_the_second_ends_at_once(number, capfd):
    with StopRequest(says=True) as stop:
        stop.nothing_to_lose = False  # as after the first step
        send(number)
        assert stop.signal == number
        told = capfd.readouterr().err
        assert told.count("\n") == 1
        assert "stopping after this step" in told
        with pytest.raises(Interrupted) as error:
            send(signal.SIGTERM)
        assert error.value.number == number
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("number", STOPPING, ids=NAMES)
def test_before_the_first_step_one_is_enough(number):
    with StopRequest(), pytest.raises(Interrupted, match=signal.Signals(number).name) as error:
        send(number)
    assert pickle.loads(pickle.dumps(error.value)).number == number  # a pool's process sends it to its parent


def test_under_a_launcher_the_second_is_its_own_echo():
    with StopRequest(supervised=True) as stop:
        send(signal.SIGINT)
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        assert stop.signal == signal.SIGINT


def test_a_process_that_was_forked_takes_no_notice():
    with StopRequest() as stop:
        child = os.fork()
        if not child:
            send(signal.SIGTERM)
            os._exit(7 if stop.signal is None else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    with interruptible():
        child = os.fork()
        if not child:
            send(signal.SIGTERM)
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


def test_nohup_is_heeded():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop, interruptible():
            send(signal.SIGHUP)
            assert stop.signal is None
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", STOPPING, ids=NAMES)
def test_a_verb_that_is_stopped_says_so_with_the_signals_code(number, monkeypatch, capsys):
    monkeypatch.setattr("fastmim.cli.entry._dispatch", lambda _: send(number))
    assert main(["stats"]) == 128 + number
    assert capsys.readouterr().err == f"fastmim: interrupted by {signal.Signals(number).name}\n"


def during(monkeypatch, call, action):
    """Do something within a run, in the training step of a number (from 1)."""
    forward, calls = InputMasking.forward, []

    def with_action(self, images, mask):
        if self.training:
            calls.append(1)
            if len(calls) == call:
                action()
        return forward(self, images, mask)

    monkeypatch.setattr(InputMasking, "forward", with_action)


@pytest.mark.parametrize(
    "number",
    mostly_slow(STOPPING, [signal.SIGTERM]),
    ids=lambda number: signal.Signals(number).name,
)
def test_a_run_stops_after_its_step_and_goes_on(photos, tmp_path, monkeypatch, number, capsys):
    during(monkeypatch, 5, lambda: send(number))
    run = tmp_path / "run"
    result = fastmim.pretrain(data=photos, out=run, steps=8, **TINY | {"quiet": False})
    assert (result.complete, result.steps, result.stopped_by) == (False, 5, number)
    assert load_checkpoint(run / LAST).progress.step == 5
    told = next(line for line in capsys.readouterr().out.splitlines() if "--resume" in line)
    command = told.split("resume with ")[1]
    assert main(["pretrain", *command.split()]) == 0
    assert load_checkpoint(run / LAST).progress.step == 8


def test_a_second_signal_within_the_step_ends_a_run_at_its_last_checkpoint(photos, tmp_path, monkeypatch):
    during(monkeypatch, 5, lambda: [send(signal.SIGINT), send(signal.SIGINT)])
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        fastmim.pretrain(data=photos, out=run, steps=8, checkpoint_every_steps=3, **TINY)
    assert load_checkpoint(run / LAST).progress.step == 3
    assert not list(run.rglob("*.part"))
    assert fastmim.pretrain(out=run, resume=True, quiet=True).complete


def test_a_signal_in_the_first_step_ends_a_run_that_can_be_resumed(photos, tmp_path, monkeypatch):
    during(monkeypatch, 1, lambda: send(signal.SIGTERM))
    with pytest.raises(Interrupted):
        fastmim.pretrain(data=photos, out=tmp_path, steps=4, **TINY)
    assert fastmim.pretrain(out=tmp_path, resume=True, quiet=True).complete


def first_line(process: subprocess.Popen) -> str:
    """The first line of a process that torch's Gloo, which announces itself up to 2.9, did not write."""
    return next((line for line in process.stdout if not line.startswith("[Gloo]")), "")


PROGRAM = """
import os, signal, sys, time
import torch
from fastmim.errors import FastmimError, RunError, UsageError
from fastmim.train.distributed import build_fabric
from fastmim.train.processes import launch_processes
from fastmim.train.signals import StopRequest

def ready(fabric):
    fabric.barrier()
    if fabric.is_global_zero:
        print("ready", flush=True)

def stuck(fabric):
    "As where one process computes, and the other waits for it outside of Python."
    with StopRequest() as stop:
        stop.nothing_to_lose = False
        ready(fabric)
        if fabric.global_rank:
            time.sleep(600)
        fabric.all_reduce(torch.ones(1))

def heeds(fabric):
    with StopRequest() as stop:
        stop.nothing_to_lose = False
        ready(fabric)
        while not fabric.all_reduce(torch.tensor(float(stop.signal is not None)), reduce_op="sum"):
            time.sleep(0.01)
        return stop.signal

def lost(fabric):
    fabric.barrier()
    if fabric.global_rank:
        os.kill(os.getpid(), signal.SIGKILL)
    fabric.all_reduce(torch.ones(1))

def fails(fabric):
    fabric.barrier()
    if fabric.global_rank:
        raise RunError("too many images\\ncannot be read")
    fabric.all_reduce(torch.ones(1))

def refuses(fabric):
    raise UsageError("out: no such folder")

def breaks(fabric):
    fabric.barrier()
    if fabric.global_rank:
        raise KeyError("x")
    fabric.all_reduce(torch.ones(1))

if __name__ == "__main__":
    try:
        fabric = build_fabric("cpu", 2, 1, "32-true")
        print("result", launch_processes(fabric, globals()[sys.argv[1]]), flush=True)
    except FastmimError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        sys.exit(error.exit_code)
"""


@pytest.fixture
def program(tmp_path):
    file = tmp_path / "program.py"
    file.write_text(textwrap.dedent(PROGRAM))
    started = []

    def start(what):
        environment = {**os.environ, "MARK": str(file), "MASTER_ADDR": "127.0.0.1"}
        command = [sys.executable, str(file), what]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert not wait_for_end(file), "processes were left behind"


def of(file):
    """The processes that a program has started, itself included."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and f"MARK={file}".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def wait_for_end(file):
    for _ in range(600):
        if not of(file):
            return []
        time.sleep(0.1)
    return of(file)


needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="/proc is not there")


@needs_proc
@pytest.mark.parametrize(
    ("what", "number", "times", "code", "words"),
    [
        pytest.param(
            "stuck",
            signal.SIGINT,
            2,
            130,
            "StoppedError: stopped by SIGINT at once",
            marks=pytest.mark.slow,
        ),
        pytest.param("heeds", signal.SIGINT, 1, 0, "result 2", marks=pytest.mark.slow),
        ("heeds", signal.SIGTERM, 1, 0, "result 15"),
    ],
)
def test_signals_reach_two_processes(program, what, number, times, code, words):
    process = program(what)
    assert first_line(process) == "ready\n"
    for _ in range(times):
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # a terminal's Ctrl-C reaches them all
        else:
            os.kill(process.pid, number)
        time.sleep(0.3)
    output, _ = process.communicate(timeout=120)
    assert words in output
    assert process.returncode == code


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize(
    ("what", "code", "words"),
    [
        ("lost", 1, "RunError: process 2 of 2 was killed by SIGKILL, perhaps for lack of memory"),
        ("fails", 1, "RunError: too many images cannot be read"),
        ("refuses", 2, "UsageError: out: no such folder"),
        ("breaks", 1, "RunError: process 2 of 2: unexpected KeyError: 'x'"),
    ],
)
def test_what_ends_one_of_two_processes_is_told(program, what, code, words):
    process = program(what)
    output, _ = process.communicate(timeout=120)
    assert output.strip().splitlines()[-1].startswith(words)
    assert process.returncode == code


@pytest.mark.parametrize(
    ("last", "kind", "told"),
    [
        ("fastmim.errors.RunError: too many images", RunError, "too many images"),
        ("fastmim.errors.UsageError: out: no such folder", UsageError, "out: no such folder"),
        ("KeyError: 'x'", RunError, "process 2 of 2: unexpected KeyError: 'x' (--debug shows where)"),
    ],
)
def test_an_error_of_one_process_is_the_runs(last, kind, told):
    def launch(_):
        raise ProcessRaisedException(f"\nTraceback (most recent call last):\n{last}\n", 1, 0)

    fabric = SimpleNamespace(launch=launch, world_size=2)
    with pytest.raises(kind, match=f"^{re.escape(told)}$"):
        launch_processes(fabric, print)


@needs_proc
def test_processes_do_not_outlive_the_one_that_started_them(program):
    process = program("heeds")
    assert first_line(process) == "ready\n"
    process.kill()
    process.wait()  # the fixture sees that nobody is left


def test_the_first_line_comes_before_pytorch_is_loaded():
    code = (
        "import sys, builtins\n"
        "from fastmim.cli.entry import main\n"
        "show = print\n"
        "def stop(*words, **how):\n"
        "    assert how['flush'] and 'torch' not in sys.modules\n"
        "    show(*words)\n"
        "    sys.exit(5)\n"
        "builtins.print = stop\n"
        "main(sys.argv[1:])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "pretrain", "--data", "demo:photos", "--out", "x"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 5, done.stderr
    assert done.stdout == "fastmim pretrain: loading PyTorch\n"


def test_what_a_run_is_doing_is_told_from_the_start(photos, tmp_path, capsys):
    settings = TINY | {"quiet": False}
    fastmim.pretrain(data=photos, out=tmp_path / "run", steps=2, **settings)
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"{photos}: looking for images"
    assert told[1].startswith(TINY["model"])
    order = ["fastmim of", f"{photos}: 21 images to train on", "batch 8"]
    places = [next(i for i, line in enumerate(told) if line.startswith(start)) for start in order]
    assert places == sorted(places)


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224.augreg_in21k", "vit_tiny_patch16_224"])
def test_weights_that_a_name_asks_for_are_said_to_be_left(photos, tmp_path, capsys, model):
    settings = TINY | {"quiet": False, "model": model}
    fastmim.pretrain(data=photos, out=tmp_path / "run", steps=1, **settings)
    told = capsys.readouterr().out
    assert ("weights are random, not timm's augreg_in21k" in told) == ("." in model)
    assert ("--weights timm:vit_tiny_patch16_224.augreg_in21k" in told) == ("." in model)
