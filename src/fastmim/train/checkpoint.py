"""Checkpoints that are either whole or not there: written beside, flushed, then moved into place."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from fastmim.errors import RunError

LAST = "last.ckpt"
OLDER = "checkpoints"


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let ``write`` fill a file that takes ``path``'s place only once it is complete and on disk.

    Raises:
        RunError: it could not be written (a full disk, say); what stood at ``path`` still stands there.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(beside, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        _flush_folder(path.parent)
    except (OSError, RuntimeError) as error:
        reason = _reason(error, path.parent)
        kept = "; the earlier one is intact" if path.exists() else ""
        raise RunError(f"cannot write {path}: {reason}{kept}") from error
    finally:
        beside.unlink(missing_ok=True)


def _reason(error: OSError | RuntimeError, folder: Path) -> str:
    """Why a write failed; torch reports a full disk as an inconsistency of its own."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if shutil.disk_usage(folder).free < 1 << 20:
        return "No space left on device; free some, then go on with --resume"
    return str(error).splitlines()[0]


def _flush_folder(folder: Path) -> None:
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_checkpoint(run: Path, state: dict[str, Any], step: int, keep: int) -> None:
    """Write ``run``/last.ckpt; with ``keep`` > 1, also the keep - 1 before it, as checkpoints/step-N.ckpt."""
    last = run / LAST
    write_atomically(last, lambda file: torch.save(state, file))
    if keep <= 1:
        return
    older = run / OLDER
    older.mkdir(exist_ok=True)
    copy = older / f"step-{step:09d}.ckpt"
    copy.unlink(missing_ok=True)
    try:
        os.link(last, copy)
    except OSError:  # a file system without hard links
        shutil.copyfile(last, copy)
    for surplus in sorted(older.glob("step-*.ckpt"))[:-keep]:
        surplus.unlink()


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU; only tensors and plain values are ever unpickled.

    Raises:
        RunError: the file is damaged.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        others = sorted(str(other) for other in (path.parent / OLDER).glob("step-*.ckpt"))
        hint = f"; copy {others[-1]} over it to go on from there" if others else ""
        raise RunError(f"{path} is damaged and cannot be read{hint}") from error
    return state


def remove_leftovers(run: Path) -> None:
    """Delete half-written files that a killed process left behind."""
    for part in run.glob(".*.part"):
        part.unlink(missing_ok=True)
