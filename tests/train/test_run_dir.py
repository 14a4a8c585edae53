import os
import signal
import subprocess
import sys
import threading

import pytest

import fastmim
from conftest import TINY
from fastmim.errors import UsageError
from fastmim.train.run_dir import LOCK, lock_run_dir

HOLDER = """
import os, sys, time
from pathlib import Path
from fastmim.train.run_dir import lock_run_dir
with lock_run_dir(Path(sys.argv[1])):
    if os.fork():  # its child outlives it
        print("held", flush=True)
    time.sleep(6000)
"""


IN_TURNS = """
import sys, time
from pathlib import Path
from fastmim.train.run_dir import lock_run_dir
for _ in range(20):
    with lock_run_dir(Path(sys.argv[1])):
        file = Path(sys.argv[1]) / "taken"
        file.touch(exist_ok=False)
        time.sleep(0.01)
        file.unlink()
"""


def test_no_two_processes_write_to_one_run(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("fastmim.train.run_dir.PATIENCE", 0.0)
    run = tmp_path / "run"
    command = [sys.executable, "-c", HOLDER, run]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as other:
        try:
            assert other.stdout.readline() == b"held\n"
            for ways in ({}, {"resume": True}, {"overwrite": True}):
                with pytest.raises(UsageError, match=f"out: another process is writing to {run}"):
                    fastmim.pretrain(data=photos, out=run, **TINY, **ways)
            with pytest.raises(UsageError, match="another process is writing"):
                fastmim.finetune(data="demo:digits", out=run, encoder="none", model="resnet18", quiet=True)
        finally:
            other.kill()  # the system lets go of what is held
    assert [file.name for file in run.iterdir()] == [".lock"]
    assert fastmim.pretrain(data=photos, out=run, steps=1, **TINY).complete
    os.killpg(other.pid, signal.SIGKILL)


def test_a_killed_run_is_waited_for(tmp_path):
    command = [sys.executable, "-c", HOLDER, tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as other:
        assert other.stdout.readline() == b"held\n"
        threading.Timer(0.5, os.killpg, (other.pid, signal.SIGKILL)).start()
        with lock_run_dir(tmp_path):
            assert other.poll() is not None
            assert (tmp_path / LOCK).exists()
    assert not list(tmp_path.iterdir())


def test_one_of_many_processes_holds_a_run_at_a_time(tmp_path):
    command = [sys.executable, "-c", IN_TURNS, tmp_path / "run"]
    others = [subprocess.Popen(command) for _ in range(2)]
    assert [other.wait() for other in others] == [0, 0]
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize("settings", [{"accelerator": "cuda"}, {"kernels.compile": "cudagraphs"}])
def test_a_device_that_is_not_there_costs_no_earlier_run(photos, tmp_path, settings, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    run = tmp_path / "run"
    assert fastmim.pretrain(data=photos, out=run, steps=1, **TINY).complete
    before = {file: file.read_bytes() for file in run.iterdir()}
    with pytest.raises(UsageError, match=r"cuda|CUDA"):
        fastmim.pretrain(data=photos, out=run, overwrite=True, **TINY, **settings)
    assert {file: file.read_bytes() for file in run.iterdir()} == before
