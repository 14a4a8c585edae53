"""Atomic file writes: to a temporary file in the same folder, flushed, then moved into place."""

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from fastmim.errors import RunError

TORCH_FULL = "unexpected pos"  # how torch's archive writer reports that fewer bytes were written
NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path to write to within the block; the file then replaces ``path``, flushed to disk.

    If the block raises, ``path`` is unchanged. Raises OSError.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield beside
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.replace(path)
        _flush_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):  # it would replace the error that is being raised
            beside.unlink()


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let ``write`` fill a file that replaces ``path`` only once it is complete and on disk.

    Raises:
        RunError: the file cannot be written (a full disk, for example); ``path`` is unchanged.
    """
    try:
        with replacing(path) as beside, beside.open("wb") as file:
            write(file)
    except (OSError, RuntimeError) as error:
        raise unwritten(path, error) from error


def unwritten(path: Path, error: OSError | RuntimeError) -> RunError:
    """Return the error to raise for a file that cannot be written, with the reason."""
    kept = "; the earlier one is intact" if path.exists() else ""
    return RunError(f"cannot write {path}: {_reason(error, path.parent)}{kept}")


def _reason(error: OSError | RuntimeError, folder: Path) -> str:
    """Return why a write failed; torch reports a full disk as an internal error."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    # The partial file is deleted by now, and with it the sign of a full disk.
    lost = any(isinstance(part, OSError) and part.errno == errno.ENOSPC for part in _chain(error))
    if lost or TORCH_FULL in str(error) or shutil.disk_usage(folder).free < 1 << 20:
        return "No space left on device; free some, then resume with --resume"
    return str(error).splitlines()[0]


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those in whose handling it was raised."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _flush_folder(folder: Path) -> None:
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link_atomically(source: Path, path: Path) -> None:
    """Make ``path`` a hard link to ``source``, or a copy if the file system has no links."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    beside.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), beside)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        with source.open("rb") as content:
            write_atomically(path, lambda file: shutil.copyfileobj(content, file))
        return
    beside.replace(path)
    _flush_folder(path.parent)
