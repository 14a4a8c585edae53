"""A run directory: which files are ours, and whether a run may start in it."""

import contextlib
import difflib
import errno
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout
from lightning_fabric import Fabric

from fastmim.errors import UsageError
from fastmim.train.checkpoint import LAST, OLDER, STARTING, older_checkpoints
from fastmim.train.distributed import precision_of
from fastmim.train.logs import METRICS
from fastmim.train.resuming import Checkpoint, newest_checkpoint, sound_checkpoint

Resume = bool | Literal["or-begin"]
"""Whether to go on with a run: no; yes, so that there must be one; or where there is one."""

CONFIG = "config.yaml"
SAMPLES = "samples.png"
REPORT = "report.html"
LOCK = ".lock"  # no file of the run: a killed one leaves it, and it holds nothing
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
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
def written(
    fabric: Fabric, run: Path, files: tuple[str, ...], resume: Resume, overwrite: bool
) -> Iterator[Checkpoint | None]:
    """Have ``run`` for this run alone, and ready; gives the checkpoint to go on from, or None for a new run.

    Every process of a run calls this; the one that writes holds the folder. The arguments are those of
    `prepare_run_directory`.

    Raises:
        UsageError: what `held` and `prepare_run_directory` raise.
        RunError: no checkpoint of the run is sound.
    """
    with held(run) if fabric.is_global_zero else contextlib.nullcontext():
        found = None
        if fabric.is_global_zero:
            prepare_run_directory(run, files, resume, overwrite)
            found = newest_checkpoint(run) if goes_on(run, resume) else None
        file = fabric.broadcast(found.file if found else None)
        if found is None and file is not None:
            found = sound_checkpoint(file)
        if found is not None and found.state["choices"]["precision"] != precision_of(fabric):
            raise UsageError(f"out: another process has begun a run in {run}: start anew to go on with it")
        yield found


@contextlib.contextmanager
def held(run: Path) -> Iterator[None]:
    """Let no second process write to ``run`` within the block; it is made where it is missing.

    The system lets go when the process ends, however it ends, and a forked process does not hold the lock; a
    while is waited for that. Nothing is held where the file system knows no locks.

    Raises:
        UsageError: another process writes to it, or it cannot be made.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"out: {run} cannot be made: {error.strerror}") from error
    lock = FileLock(run / LOCK)
    try:
        lock.acquire(timeout=PATIENCE, poll_interval=0.1)
    except Timeout as error:
        raise UsageError(
            f"out: another process is writing to {run}: wait for it, or give another folder"
        ) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise UsageError(f"out: {run} cannot be locked: {error.strerror or error}") from error
    try:
        yield
    finally:
        if lock.is_locked:
            with contextlib.suppress(OSError):  # Windows keeps a file that is open
                (run / LOCK).unlink()  # whoever waits for this file sees that, and makes another
        lock.release()


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
