"""A run directory: which files are ours, and whether a run may start in it."""

import shutil
from pathlib import Path

from fastmim.errors import UsageError
from fastmim.train.checkpoint import LAST, OLDER
from fastmim.train.runlog import METRICS

CONFIG = "config.yaml"
SAMPLES = "samples.png"
REPORT = "report.html"


def prepare_run_directory(run: Path, files: tuple[str, ...], resume: bool, overwrite: bool) -> bool:
    """Make ``run`` ready. True where there is a checkpoint to go on from.

    Args:
        run: the directory; made where it is missing.
        files: names of every file that a run writes.
        resume: go on from last.ckpt if there is one.
        overwrite: delete the files of an earlier run; others in the directory are left alone.

    Raises:
        UsageError: the directory holds a run and neither was asked for, or it cannot be made.
    """
    if resume and overwrite:
        raise UsageError("resume and overwrite exclude each other")
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"out: {run} cannot be made: {error.strerror}") from error
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
