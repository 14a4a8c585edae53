"""Files from anywhere, opened so that nothing makes a reader wait: regular ones only, of a bounded size."""

import errno
import os
import stat
from pathlib import Path

from fastmim.errors import UsageError

MOST_BYTES = 1 << 30  # of a file that is read as a whole: larger ones hold no single image
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}
# A FIFO would wait for a writer; a terminal would become the process's own.
FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOCTTY", "O_BINARY"))
NOT_PATHS = ("demo:", "hf:")  # what data begins with that is no path


def open_regular(path: str | os.PathLike[str]) -> int:
    """A descriptor of a regular file. Raises OSError, also for a FIFO, a socket, a device or a folder."""
    try:
        _check(os.stat(path))  # first of all: to open a device may have effects
        descriptor = os.open(path, FLAGS)
    except ValueError as error:  # a zero byte, or letters that no file name can have
        raise OSError(errno.EINVAL, "its name cannot be that of a file") from error
    try:
        _check(os.fstat(descriptor))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def read_regular(path: str | os.PathLike[str], most_bytes: int = MOST_BYTES) -> bytes:
    """The bytes of a regular file, as many as its size says: of /proc none. Raises OSError."""
    with open(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        check_size(size, most_bytes)
        return file.read(size)


def check_size(size: int, most_bytes: int = MOST_BYTES) -> None:
    """Raises OSError where a file has more bytes than are read as a whole."""
    if size > most_bytes:
        raise OSError(errno.EFBIG, f"{size:,} bytes, more than {most_bytes:,}: too large for an image")


def why_not_regular(path: str | os.PathLike[str]) -> str | None:
    """What is wrong with a file that is no regular one, or cannot be opened; None of one that can."""
    try:
        os.close(open_regular(path))
    except OSError as error:
        return error.strerror or str(error)
    return None


def _check(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = KINDS.get(stat.S_IFMT(status.st_mode), "no file")
        raise OSError(errno.EINVAL, f"{kind}, not a regular file")


def check_data(spec: str) -> None:
    """Raise UsageError where ``spec`` is a path to images and nothing is there."""
    if not spec.startswith(NOT_PATHS):
        find_path(spec)


def find_path(spec: str) -> Path:
    """The folder or file that is named. Raises UsageError where there is none, or none that can be read."""
    path = Path(spec).expanduser()
    try:
        there, folder = path.exists(), path.is_dir()
    except ValueError:  # a zero byte
        there = folder = False
    if not there:
        raise UsageError(
            f"data: {spec} does not exist; "
            "give a folder, a .tar, .parquet, hf:NAME, demo:photos or demo:digits"
        )
    reason = None if folder else why_not_regular(path)
    if reason:
        raise UsageError(f"data: {spec} cannot be read: {reason}; give a folder, a .tar or a .parquet file")
    return path
