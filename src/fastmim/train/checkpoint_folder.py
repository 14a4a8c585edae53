"""Checkpoints in a run's folder: the last one, older ones, and the one to resume from.

Checkpoints are written atomically. A run never starts over in a folder that holds files of a run.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple

import torch

from fastmim.errors import RunError, UsageError
from fastmim.system.files import link_atomically, unwritten, write_atomically
from fastmim.train.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from fastmim.train.run_files import LAST, OLDER, STARTING, older_checkpoints
from fastmim.train.seal import Damaged, sealed_step
from fastmim.train.stages import Stage, TrainingPlan

EARLIER = (
    "this run was started by an earlier version: from here on, its crops and masks are drawn differently"
)


def save_checkpoint(run: Path, checkpoint: Checkpoint, keep: int) -> None:
    """Write ``run``/last.ckpt; keep the ``keep`` - 1 before it as checkpoints/step-N.ckpt.

    Raises:
        RunError: the file cannot be written; the checkpoints before it are intact.
    """
    replace_last(run, lambda file: write_checkpoint(checkpoint, file), keep)


def replace_last(run: Path, write: Callable[[IO[bytes]], object], keep: int) -> None:
    """Replace last.ckpt, as `save_checkpoint` does.

    The previous last.ckpt is linked as an older checkpoint before it is replaced. So a failure at any point
    loses no checkpoint, and afterwards no two of them are the same file.
    """
    last = run / LAST
    if keep > 1:
        _keep_last(run)
    write_atomically(last, write)
    (run / STARTING).unlink(missing_ok=True)
    if keep > 1:
        for surplus in older_checkpoints(run)[keep - 1 :]:
            surplus.unlink()


def _keep_last(run: Path) -> None:
    """Link last.ckpt as an older checkpoint, before it is replaced."""
    last = run / LAST
    step = step_of(last)
    if step is None:
        return
    kept = run / OLDER / f"step-{step:09d}.ckpt"
    if kept.exists() and kept.samefile(last):  # after a crash between link and replacement
        return
    try:
        kept.parent.mkdir(exist_ok=True)
        link_atomically(last, kept)
    except OSError as error:
        raise unwritten(kept, error) from error


def step_of(file: Path) -> int | None:
    """Return the step at which a checkpoint was written; None if the file cannot be read."""
    step = sealed_step(file)
    if step is None and file.is_file():  # written by an earlier version
        with contextlib.suppress(Exception):
            step = int(torch.load(file, map_location="cpu", weights_only=True, mmap=True)["progress"]["step"])
    return step


def load_checkpoint(path: Path) -> Checkpoint:
    """Load a checkpoint to the CPU; only tensors and plain values are unpickled.

    Raises:
        FileNotFoundError: the file does not exist.
        RunError: the file is damaged, or not a checkpoint of a run.
    """
    path.stat()
    try:
        return read_checkpoint(path)
    except Damaged as error:
        others = older_checkpoints(path.parent)
        hint = f"; --resume tries {others[0]} next" if others and path.name == LAST else ""
        raise RunError(f"{path} {error}{hint}") from error


class ResumePoint(NamedTuple):
    """An intact checkpoint, and the file that it was read from."""

    checkpoint: Checkpoint
    file: Path
    note: str
    """Message for the user if the run wrote a later checkpoint, or if an earlier version wrote this one."""

    def stage_of(self, plan: TrainingPlan) -> Stage:
        """Return the checkpoint's stage in ``plan``. Raises RunError if it has no such stage and step."""
        number, step = self.checkpoint.stage, self.checkpoint.progress.step
        reason = ""
        if number >= len(plan.stages):
            reason = f"is in stage {number + 1}, but the run has {len(plan.stages)}"
        elif not plan.stages[number].first_step <= step <= plan.stages[number].last_step:
            first, last = plan.stages[number].first_step, plan.stages[number].last_step
            reason = f"is at step {step} in stage {number + 1}, which has steps {first} to {last}"
        if reason:
            raise RunError(
                f"{self.file} {reason}: it is not of this run; put an intact one there, or delete it to "
                "resume from an older one"
            )
        return plan.stages[number]


def newest_checkpoint(run: Path) -> ResumePoint | None:
    """Read the newest intact checkpoint in ``run``; None if the run has not written one yet.

    Raises:
        RunError: no checkpoint is intact.
        UsageError: there is no checkpoint, although the run had started.
    """
    reasons: list[str] = []
    for file in (run / LAST, *older_checkpoints(run)):
        try:
            checkpoint = read_checkpoint(file)
        except Damaged as error:
            reasons.append(f"{file.relative_to(run)} {error}")
            continue
        notes = [f"resuming from {file.relative_to(run)}, since {'; '.join(reasons)}"] if reasons else []
        if sealed_step(file) is None:
            notes.append(EARLIER)
        return ResumePoint(checkpoint, file, "; ".join(notes))
    last = run / LAST
    if last.is_symlink() or last.exists() or len(reasons) > 1:
        raise RunError(
            f"{run} holds no intact checkpoint to resume from: {'; '.join(reasons)}; "
            "put an intact copy in place, or start over with --overwrite"
        )
    if (run / STARTING).exists():
        return None
    raise UsageError(
        f"out: the run in {run} cannot be resumed: {LAST} is missing, and there is no older checkpoint; "
        "restore it, or start over with --overwrite"
    )


def adopt(run: Path, point: ResumePoint) -> None:
    """Make the checkpoint that a run resumes from its last.ckpt, and delete newer ones, which are damaged."""
    last = run / LAST
    if point.file == last:
        return
    if last.is_dir() and not last.is_symlink():
        raise RunError(f"{last} is a folder: remove it to resume from {point.file}")
    for newer in older_checkpoints(run):
        if newer == point.file:
            break
        newer.unlink()
    try:
        link_atomically(point.file, last)
    except OSError as error:
        raise RunError(f"cannot write {last}: {error.strerror}") from error


def remove_leftovers(run: Path) -> None:
    """Delete partial files that a killed process left."""
    for part in (*run.glob(".*.part"), *(run / OLDER).glob(".*.part")):
        part.unlink(missing_ok=True)
