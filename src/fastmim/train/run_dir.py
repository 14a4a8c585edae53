"""A run's folder: lock it, check whether a run may start in it, and delete an earlier run."""

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from fastmim.errors import UsageError
from fastmim.train.run_files import LAST, OLDER, STARTING, holds_run, near_runs
from fastmim.train.settings import Resume

PATIENCE = 10.0  # seconds for the processes of a killed run to end
LOCK = ".lock"  # a killed run leaves it behind, unlocked
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def goes_on(run: Path, resume: Resume, is_held: bool = False) -> bool:
    """Return whether a run in ``run`` is to be resumed.

    Args:
        is_held: whether this process holds the lock on the folder.

    Raises:
        UsageError: there is no run to resume, or another process writes to the folder.
    """
    if isinstance(resume, str) and resume != "or-begin":
        raise UsageError(f"resume = {resume!r} must be True, False or 'or-begin'")
    if not resume or holds_run(run):
        return bool(resume)
    if resume == "or-begin":
        return False
    if run.is_dir() and not is_held:
        with lock_run_dir(run):  # fails if another process is about to begin one
            pass
    raise UsageError(
        f"out: there is no run in {run} to resume{near_runs(run)}; leave out --resume to start one, or "
        "give --resume-or-begin to resume a run if there is one"
    )


@contextlib.contextmanager
def lock_run_dir(run: Path) -> Iterator[None]:
    """Hold an exclusive lock on ``run`` within the block, and create the folder if needed.

    The operating system releases the lock when the process exits, and forked processes do not hold it. An
    existing lock is waited for, up to `PATIENCE` seconds, since child processes may outlive a killed run.
    Nothing is locked on file systems without locks.

    Raises:
        UsageError: another process writes to the folder, or it cannot be created.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"out: {run} cannot be created: {error.strerror}") from error
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
            with contextlib.suppress(OSError):  # Windows does not delete an open file
                (run / LOCK).unlink()  # a process that waits for this file notices, and creates another
        lock.release()


def check_start(run: Path, resume: Resume, overwrite: bool, is_held: bool = False) -> bool:
    """Check that a run may start in ``run``.

    Args:
        resume: resume the run in the folder; "or-begin": if there is one.
        overwrite: allow an earlier run to be deleted.
        is_held: whether this process holds the lock on the folder.

    Returns:
        Whether the run is resumed.

    Raises:
        UsageError: the folder holds a run and neither option is set, both are set, or no run can be resumed.
    """
    if resume and overwrite:
        raise UsageError("resume and overwrite exclude each other")
    if goes_on(run, resume, is_held):
        return True
    if holds_run(run) and not overwrite:
        raise UsageError(
            f"out: {run} already holds a run; --resume resumes it, --overwrite deletes it, "
            "or give another folder"
        )
    return False


def prepare_run_dir(run: Path, files: tuple[str, ...], resume: Resume, overwrite: bool) -> None:
    """Prepare the folder ``run`` for a new or resumed run.

    Args:
        run: the folder, which exists.
        files: names of all files that a run writes.
        resume: as for `check_start`.
        overwrite: delete the files of an earlier run; other files in the folder are kept.

    Raises:
        UsageError: as for `check_start`.
    """
    if check_start(run, resume, overwrite, is_held=True):
        return
    if holds_run(run):
        delete_run(run, files)
    (run / STARTING).touch()


def delete_run(run: Path, files: tuple[str, ...]) -> None:
    """Delete the ``files`` of a run, last.ckpt first, so that the rest is never taken for a whole run."""
    for name in (LAST, *files):
        if (run / name).is_dir() and not (run / name).is_symlink():
            shutil.rmtree(run / name)
        (run / name).unlink(missing_ok=True)
    shutil.rmtree(run / OLDER, ignore_errors=True)
    for events in run.glob("events.out.tfevents.*"):
        events.unlink()
