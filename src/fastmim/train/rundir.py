"""A run directory: which files are ours, and whether a run may start in it."""

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from fastmim.errors import UsageError
from fastmim.train.checkpoint import LAST, OLDER
from fastmim.train.runlog import METRICS

CONFIG = "config.yaml"
SAMPLES = "samples.png"
REPORT = "report.html"


@contextlib.contextmanager
def held(run: Path) -> Iterator[None]:
    """Let no second process write to ``run`` within the block; it is made where it is missing.

    If nothing comes to be in it, it is removed again. The system lets go when the process ends, however it
    ends. Nothing is held where it knows no such locks (Windows, some network file systems).

    Raises:
        UsageError: another process writes to it, or it cannot be made.
    """
    made = not run.exists()
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
        if not all(map(_locked, locks)):
            raise UsageError(f"out: another process is writing to {run}: wait for it, or give another folder")
        yield
    finally:
        let_go()
        if made:
            with contextlib.suppress(OSError):  # it is not empty
                run.rmdir()


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


def prepare_run_directory(run: Path, files: tuple[str, ...], resume: bool, overwrite: bool) -> bool:
    """Make ``run`` ready. True where there is a checkpoint to go on from.

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
        return True
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
    return False
