import os
import signal
import subprocess
import sys

import pytest

import fastmim
from conftest import TINY
from fastmim.errors import UsageError
from fastmim.train.rundir import held

HOLDER = """
import os, sys, time
from pathlib import Path
from fastmim.train.rundir import held
with held(Path(sys.argv[1])):
    if os.fork():  # its child outlives it
        print("held", flush=True)
    time.sleep(600)
"""


def test_no_two_processes_write_to_one_run(photos, tmp_path):
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
    assert list(run.iterdir()) == []
    assert fastmim.pretrain(data=photos, out=run, **TINY).complete
    os.killpg(other.pid, signal.SIGKILL)


def test_a_run_that_could_not_begin_leaves_no_folder(tmp_path):
    with pytest.raises(RuntimeError), held(tmp_path / "none"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with held(tmp_path):  # what was there stays
        pass
    assert tmp_path.is_dir()
