"""Checkpoints that are either whole or not there: written beside, flushed, then moved into place."""

import contextlib
from pathlib import Path
from typing import Any

import torch

from fastmim.errors import RunError
from fastmim.system.files import _unwritten, link_atomically, write_atomically
from fastmim.train.run_files import LAST, OLDER, STARTING, older_checkpoints
from fastmim.train.seal import Damaged, check_sealed, sealed_step, write_sealed


def save_checkpoint(run: Path, state: dict[str, Any], step: int, keep: int) -> None:
    """Write ``run``/last.ckpt; keep the ``keep`` - 1 before it as checkpoints/step-N.ckpt.

    The last one becomes an older one before another takes its place. So no two of them are one file, and
    whatever fails on the way, all that were kept still are.

    Raises:
        RunError: it could not be written; the checkpoints before it are intact.
    """
    last = run / LAST
    if keep > 1:
        _keep_last(run)
    write_atomically(last, lambda file: write_sealed(state, step, file))
    (run / STARTING).unlink(missing_ok=True)
    if keep > 1:
        for surplus in older_checkpoints(run)[keep - 1 :]:
            surplus.unlink()


def _keep_last(run: Path) -> None:
    """Make last.ckpt one of the older ones, too, until another takes its place."""
    last = run / LAST
    step = step_of(last)
    if step is None:
        return
    kept = run / OLDER / f"step-{step:09d}.ckpt"
    if kept.exists() and kept.samefile(last):  # a crash between the two moves
        return
    try:
        kept.parent.mkdir(exist_ok=True)
        link_atomically(last, kept)
    except OSError as error:
        raise _unwritten(kept, error) from error


def step_of(file: Path) -> int | None:
    """The step at which a checkpoint was written, if it can be read."""
    step = sealed_step(file)
    if step is None and file.is_file():  # of an earlier version
        with contextlib.suppress(Exception):
            step = int(torch.load(file, map_location="cpu", weights_only=True, mmap=True)["progress"]["step"])
    return step


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Check that a checkpoint is whole and read it to the CPU; only tensors and plain values are unpickled.

    Raises:
        Damaged: it is not what was written.
    """
    try:
        check_sealed(path)
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Damaged:
        raise
    except OSError as error:
        gone = isinstance(error, FileNotFoundError)
        raise Damaged("is missing" if gone else f"cannot be read ({error.strerror})") from error
    except Exception as error:  # whatever unpickling meets
        raise Damaged("is damaged (torch cannot read it)") from error
    return state


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU; only tensors and plain values are ever unpickled.

    Raises:
        FileNotFoundError: it is not there.
        RunError: the file is damaged.
    """
    path.stat()
    try:
        return read_checkpoint(path)
    except Damaged as error:
        others = older_checkpoints(path.parent)
        hint = f"; --resume tries {others[0]} next" if others and path.name == LAST else ""
        raise RunError(f"{path} {error}{hint}") from error


def remove_leftovers(run: Path) -> None:
    """Delete half-written files that a killed process left behind."""
    for part in (*run.glob(".*.part"), *(run / OLDER).glob(".*.part")):
        part.unlink(missing_ok=True)
