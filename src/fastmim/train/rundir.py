"""A run directory: which files are ours, and whether a run may start in it."""

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from fastmim.errors import UsageError
from fastmim.train.checkpoint import LAST, OLDER, load_checkpoint
from fastmim.train.launch import precision_of
from fastmim.train.runlog import METRICS

CONFIG = "config.yaml"
SAMPLES = "samples.png"
REPORT = "report.html"
PATIENCE = 10.0  # seconds in which a killed run's processes end


@contextlib.contextmanager
def written(
    fabric: Fabric, run: Path, files: tuple[str, ...], resume: bool, overwrite: bool
) -> Iterator[dict[str, Any] | None]:
    """Have ``run`` for this run alone, and ready; gives what its checkpoint holds, or None for a new run.

    Every process of a run calls this; the one that writes holds the folder. The arguments are those of
    `prepare_run_directory`.

    Raises:
        UsageError: what `held` and `prepare_run_directory` raise.
    """
    with held(run) if fabric.is_global_zero else contextlib.nullcontext():
        if fabric.is_global_zero:
            prepare_run_directory(run, files, resume, overwrite)
        fabric.barrier()
        state = load_checkpoint(run / LAST) if resume and (run / LAST).is_file() else None
        if state is not None and state["choices"]["precision"] != precision_of(fabric):
            raise UsageError(f"out: another process has begun a run in {run}: start anew to go on with it")
        yield state


@contextlib.contextmanager
def held(run: Path) -> Iterator[None]:
    """Let no second process write to ``run`` within the block; it is made where it is missing.

    The system lets go when the process ends, however it ends; a while is waited for that, since processes may
    outlive one that was killed. Nothing is held where the system knows no such locks (Windows, some network
    file systems).

    Raises:
        UsageError: another process writes to it, or it cannot be made.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        locks = [] if sys.platform == "win32" else [os.open(run, os.O_RDONLY)]
    except OSError as error:
        raise UsageError(f"out: {run} cannot be made: {error.strerror}") from error

    def let_go() -> None:
        while locks:
            os.close(locks.pop())

    if hasattr(os, "register_at_fork"):  # a loader's worker that outlives a killed run must not hold it
        os.register_at_fork(after_in_child=let_go)
    try:
        patient_until = time.monotonic() + PATIENCE
        while not all(map(_locked, locks)):
            if time.monotonic() > patient_until:
                raise UsageError(
                    f"out: another process is writing to {run}: wait for it, or give another folder"
                )
            time.sleep(0.1)
        yield
    finally:
        let_go()


def _locked(directory: int) -> bool:
    """Lock what is opened so; False if another process has it."""
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # the file system has no locks
        return True
    return True


def prepare_run_directory(run: Path, files: tuple[str, ...], resume: bool, overwrite: bool) -> None:
    """Make ``run`` ready.

    Args:
        run: the directory, which is there.
        files: names of every file that a run writes.
        resume: go on from last.ckpt if there is one.
        overwrite: delete the files of an earlier run; others in the directory are left alone.

    Raises:
        UsageError: the directory holds a run and neither was asked for.
    """
    if resume and overwrite:
        raise UsageError("resume and overwrite exclude each other")
    if resume and (run / LAST).is_file():
        return
    holds_run = any((run / name).exists() for name in (CONFIG, LAST, METRICS))
    if holds_run and not (overwrite or resume):
        raise UsageError(
            f"out: {run} already holds a run; --resume goes on with it, --overwrite deletes it, "
            "or give another folder"
        )
    if holds_run:
        for name in files:
            (run / name).unlink(missing_ok=True)
        for events in run.glob("events.out.tfevents.*"):
            events.unlink()
        shutil.rmtree(run / OLDER, ignore_errors=True)
