"""Where a run goes on: its newest sound checkpoint. It never starts over where the files of a run lie."""

from pathlib import Path
from typing import Any, NamedTuple

from fastmim.errors import RunError, UsageError
from fastmim.system.files import link_atomically
from fastmim.train.checkpoint import read_checkpoint
from fastmim.train.run_files import LAST, STARTING, older_checkpoints
from fastmim.train.seal import Damaged, sealed_step
from fastmim.train.stages import Stage, TrainingPlan
from fastmim.train.state import check_place, check_state

EARLIER = (
    "this run was begun by an earlier version: from here on its crops and masks are drawn in another way"
)


class Checkpoint(NamedTuple):
    """A checkpoint that is whole and of a run."""

    state: dict[str, Any]
    file: Path
    note: str
    """What a person should know: that it is not the last one that the run wrote, or of an earlier version."""


def sound_checkpoint(file: Path) -> Checkpoint:
    """The checkpoint in ``file``. Raises Damaged unless it is whole and of a run."""
    state = read_checkpoint(file)
    check_state(state)
    return Checkpoint(state, file, "")


def newest_checkpoint(run: Path) -> Checkpoint | None:
    """The newest checkpoint of the run in ``run`` that is sound; None for a run that had not written one yet.

    Raises:
        RunError: none is sound.
        UsageError: there is none, though the run had begun.
    """
    reasons: list[str] = []
    for file in (run / LAST, *older_checkpoints(run)):
        try:
            found = sound_checkpoint(file)
        except Damaged as error:
            reasons.append(f"{file.relative_to(run)} {error}")
            continue
        notes = [f"going on from {file.relative_to(run)}, since {'; '.join(reasons)}"] if reasons else []
        if sealed_step(file) is None:
            notes.append(EARLIER)
        return found._replace(note="; ".join(notes))
    last = run / LAST
    if last.is_symlink() or last.exists() or len(reasons) > 1:
        raise RunError(
            f"{run} holds no sound checkpoint to go on from: {'; '.join(reasons)}; "
            "put a sound copy in place, or start over with --overwrite"
        )
    if (run / STARTING).exists():
        return None
    raise UsageError(
        f"out: the run in {run} cannot go on: {LAST} is missing, and there is no older checkpoint; "
        "put it back, or start over with --overwrite"
    )


def leg_of(checkpoint: Checkpoint, plan: TrainingPlan) -> Stage:
    """The leg of the run's plan at which a checkpoint stands. Raises RunError where it has no such place."""
    try:
        check_place(checkpoint.state, plan)
    except Damaged as error:
        raise RunError(
            f"{checkpoint.file} {error}: it is not of this run; put a sound one there, or delete it to go "
            "on from an older one"
        ) from error
    return plan.stages[int(checkpoint.state["leg"])]


def adopt(run: Path, checkpoint: Checkpoint) -> None:
    """Make the checkpoint that a run goes on from its last one, in the place of damaged ones."""
    last = run / LAST
    if checkpoint.file == last:
        return
    if last.is_dir() and not last.is_symlink():
        raise RunError(f"{last} is a folder: remove it to go on from {checkpoint.file}")
    for newer in older_checkpoints(run):
        if newer == checkpoint.file:
            break
        newer.unlink()
    try:
        link_atomically(checkpoint.file, last)
    except OSError as error:
        raise RunError(f"cannot write {last}: {error.strerror}") from error
