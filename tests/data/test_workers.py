"""Loader processes that fail: the run ends with a line, in time, and leaves none of them behind."""

import multiprocessing as mp
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from typing import Any

import pytest
from torch.utils.data import Dataset

from fastmim.data.loading.workers import WorkerTraceback, answers
from fastmim.errors import RunError, UsageError


class Unpicklable(Exception):
    def __init__(self, one, two):
        super().__init__(one)
        self.one, self.two = one, two


class Failing(Dataset):
    """Answers a question with itself; to question 3 something goes wrong."""

    def __init__(self, what):
        self.what = what

    def __getitem__(self, question):
        if question == 3:
            if self.what == "memory":
                raise MemoryError
            if self.what == "unpicklable":
                raise Unpicklable("it cannot\nbe sent", lambda: None)
            if self.what == "ours":
                raise RunError("100 images in a row")
            if self.what == "usage":
                raise UsageError("no such thing")
            if self.what == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.what == "gone":
                os._exit(7)
            if self.what == "stuck":
                time.sleep(600)
        return question


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("memory", "loading images failed: MemoryError"),
        ("unpicklable", "loading images failed: Unpicklable: it cannot"),
        ("ours", "100 images in a row"),
        ("usage", "no such thing"),
    ],
)
def test_what_is_raised_in_a_process_ends_the_run(what, words, workers):
    got = []
    with pytest.raises(UsageError if what == "usage" else RunError) as raised:
        got.extend(answers(Failing(what), range(40), workers))
    assert str(raised.value) == words
    assert isinstance(raised.value.__cause__, WorkerTraceback)
    assert "test_workers.py" in str(raised.value.__cause__)  # what --debug shows
    assert not mp.active_children()


@pytest.mark.parametrize("what", ["killed", "gone"])
def test_a_process_that_is_lost_ends_the_run(what):
    with pytest.raises(RunError, match=r"killed by signal|exited unexpectedly") as raised:
        list(answers(Failing(what), range(40), 2))
    assert "--workers" in str(raised.value)
    assert not mp.active_children()


def test_processes_end_when_nobody_asks_for_more():
    stream: Any = answers(Failing("nothing"), range(1000), 2)
    assert [next(stream), next(stream)] == [0, 1]
    assert len(mp.active_children()) == 2
    stream.close()
    assert not mp.active_children()


def test_a_busy_process_is_killed_and_not_waited_for(monkeypatch):
    monkeypatch.setattr("fastmim.data.loading.workers.SECONDS_TO_END", 0.2)
    stream: Any = answers(Failing("stuck"), range(40), 1)
    next(stream)
    before = time.monotonic()
    stream.close()
    assert time.monotonic() - before < 60
    assert not mp.active_children()


def run_program(text: str, *before: str, timeout: int = 120) -> subprocess.CompletedProcess:
    program = "from test_workers import *\n" + textwrap.dedent(text)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])}
    return subprocess.run(
        [*before, sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment,
    )


def test_a_program_that_ends_within_a_loop_ends_its_processes():
    """Also where a traceback, or a global, still holds the iterator."""
    done = run_program(
        """
        import fastmim.data.loading.workers
        fastmim.data.loading.workers.SECONDS_TO_END = 0.5
        stream = answers(Failing("stuck"), range(40), 2)
        print(next(stream), *[process.pid for process in mp.active_children()], flush=True)
        raise SystemExit(3)
        """
    )
    assert done.returncode == 3, done.stderr
    _, *processes = map(int, done.stdout.split())
    assert len(processes) == 2
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


@pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare is not there")
def test_a_small_shared_memory_is_named(tmp_path):
    """A container's /dev/shm of 1 MB, for batches of 3 MB."""
    mounted = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=1m none /dev/shm && exec "$@"', "sh"]
    if subprocess.run([*mounted, "true"], capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    done = run_program(
        """
        import numpy as np
        from fastmim.data.sources.open import open_images
        from fastmim.data.loading.eval_loader import EvalDataset
        from fastmim.data.loading.dataset import load_batches
        crops = EvalDataset(open_images("demo:digits"), (64, 64), 3)
        try:
            list(load_batches(crops, [np.arange(256)] * 4, 2, False))
        except RunError as error:
            print(error)
        """,
        *mounted,
    )
    assert "/dev/shm, 1.05 MB," in done.stdout, done.stderr
    assert "--shm-size" in done.stdout
    assert "--workers 0" in done.stdout
