"""A run directory: which files are ours, and whether a run may start in it."""

import contextlib
import difflib
import itertools
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lightning_fabric import Fabric

from fastmim.errors import UsageError
from fastmim.train.checkpoint import read_checkpoint
from fastmim.train.checkpoint_folder import (
    LAST,
    OLDER,
    STARTING,
    ResumePoint,
    newest_checkpoint,
    older_checkpoints,
)
from fastmim.train.distributed import precision_of
from fastmim.train.logs import METRICS

Resume = bool | Literal["or-begin"]
"""Whether to go on with a run: no; yes, so that there must be one; or where there is one."""


@dataclass(frozen=True)
class StartMode:
    """How a run is started, besides its configuration."""

    resume: Resume = False
    overwrite: bool = False
    """Delete the run that lies in the folder."""
    quiet: bool = False
    """Print nothing."""


NEW_RUN = StartMode()

CONFIG = "config.yaml"
SAMPLES = "samples.png"
REPORT = "report.html"
NEAR_RUNS = 3  # that are suggested
SEEN_FOLDERS = 10_000  # of which those are
PATIENCE = 10.0  # seconds in which a killed run's processes end


def holds_run(run: Path) -> bool:
    """Whether the files of a run lie in ``run``, whole or damaged."""
    files = [run / CONFIG, run / LAST, *older_checkpoints(run)]
    if (metrics := run / METRICS).is_file():  # an empty one is what a run leaves that was killed as it began
        return metrics.stat().st_size > 0 or any(map(os.path.lexists, files))
    return any(map(os.path.lexists, [*files, metrics]))


def goes_on(run: Path, resume: Resume, is_held: bool = False) -> bool:
    """Whether a run in ``run`` is to be resumed.

    Args:
        is_held: this process holds the folder.

    Raises:
        UsageError: it is to be, but there is none, or another process writes to the folder.
    """
    if isinstance(resume, str) and resume != "or-begin":
        raise UsageError(f"resume = {resume!r} must be True, False or 'or-begin'")
    if not resume or holds_run(run):
        return bool(resume)
    if resume == "or-begin":
        return False
    if run.is_dir() and not is_held:
        with held(run):  # unless another process is just about to begin one
            pass
    raise UsageError(
        f"out: there is no run in {run} to go on with{_near(run)}; leave out --resume to begin one, or give "
        "--resume-or-begin to do whichever is possible"
    )


def _near(run: Path) -> str:
    """In words, which runs have a name that is much like that of ``run``."""
    run = Path(os.path.abspath(run))
    parents = [run.parent, *_alike(run.parent)]
    nearby = (near for parent in parents for near in (parent / run.name, *_alike(parent / run.name)))
    found = list(filter(holds_run, nearby))
    return f", but in {' and '.join(map(str, found[:NEAR_RUNS]))}" if found else ""


def _alike(folder: Path) -> list[Path]:
    """The folders beside ``folder`` with the names most like its own."""
    try:
        with os.scandir(folder.parent) as entries:
            names = [entry.name for entry in itertools.islice(entries, SEEN_FOLDERS) if entry.is_dir()]
    except OSError:
        return []
    close = difflib.get_close_matches(folder.name, names, n=NEAR_RUNS, cutoff=0.5)
    return [folder.with_name(name) for name in close if name != folder.name]


@contextlib.contextmanager
def open_run_dir(
    fabric: Fabric, run: Path, files: tuple[str, ...], start: StartMode
) -> Iterator[ResumePoint | None]:
    """Lock ``run`` for this run and make it ready; gives where to resume, or None for a new run.

    Every process of a run calls this; the one that writes holds the folder.

    Raises:
        UsageError: what `lock_run_dir` and `prepare_run_dir` raise.
        RunError: no checkpoint of the run is sound.
    """
    with held(run) if fabric.is_global_zero else contextlib.nullcontext():
        point = None
        if fabric.is_global_zero:
            prepare_run_directory(run, files, start.resume, start.overwrite)
            point = newest_checkpoint(run) if goes_on(run, start.resume) else None
        file = fabric.broadcast(point.file if point else None)
        if point is None and file is not None:
            point = ResumePoint(read_checkpoint(file), file, "")
        if point is not None and point.checkpoint.choices.precision != precision_of(fabric):
            raise UsageError(f"out: another process has begun a run in {run}: start anew to go on with it")
        yield point


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


def prepare_run_directory(run: Path, files: tuple[str, ...], resume: Resume, overwrite: bool) -> None:
    """Make ``run`` ready.

    Args:
        run: the directory, which is there.
        files: names of every file that a run writes.
        resume: go on with the run that lies there; "or-begin": if there is one.
        overwrite: delete the files of an earlier run; others in the directory are left alone.

    Raises:
        UsageError: the directory holds a run and neither was asked for, or none and it was to be resumed.
    """
    if resume and overwrite:
        raise UsageError("resume and overwrite exclude each other")
    if goes_on(run, resume, is_held=True):
        return
    if holds_run(run):
        if not overwrite:
            raise UsageError(
                f"out: {run} already holds a run; --resume goes on with it, --overwrite deletes it, "
                "or give another folder"
            )
        delete_run(run, files)
    (run / STARTING).touch()


def delete_run(run: Path, files: tuple[str, ...]) -> None:
    """Delete the ``files`` of a run, its last checkpoint first: the rest is never taken for a whole run."""
    for name in (LAST, *files):
        if (run / name).is_dir() and not (run / name).is_symlink():
            shutil.rmtree(run / name)
        (run / name).unlink(missing_ok=True)
    shutil.rmtree(run / OLDER, ignore_errors=True)
    for events in run.glob("events.out.tfevents.*"):
        events.unlink()
