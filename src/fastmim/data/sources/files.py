"""Open untrusted files without blocking the reader: only regular files of a bounded size."""

import errno
import os
import stat
from pathlib import Path

from fastmim.errors import UsageError

MOST_BYTES = 1 << 30  # of a file that is read as a whole: larger files hold no single image
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}
# Without these flags, a FIFO waits for a writer, and a terminal becomes the process's controlling terminal.
FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOCTTY", "O_BINARY"))
NOT_PATHS = ("demo:", "hf:")  # prefixes of data other than paths


def open_regular(path: str | os.PathLike[str]) -> int:
    """Return a descriptor of a regular file. Raises OSError, also for a FIFO, socket, device or folder."""
    try:
        _check(os.stat(path))  # before opening, since opening a device may have effects
        descriptor = os.open(path, FLAGS)
    except ValueError as error:  # a zero byte, or characters that no file name can have
        raise OSError(errno.EINVAL, "its name is not a valid file name") from error
    try:
        _check(os.fstat(descriptor))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def read_regular(path: str | os.PathLike[str], most_bytes: int = MOST_BYTES) -> bytes:
    """Return the bytes of a regular file up to its stated size, which is 0 in /proc. Raises OSError."""
    with open(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        check_size(size, most_bytes)
        return file.read(size)


def check_size(size: int, most_bytes: int = MOST_BYTES) -> None:
    """Raise OSError if a file has more bytes than are read as a whole."""
    if size > most_bytes:
        raise OSError(errno.EFBIG, f"{size:,} bytes, more than {most_bytes:,}: too large for an image")


def why_not_regular(path: str | os.PathLike[str]) -> str | None:
    """Return why a file is not regular or cannot be opened; None if it can be opened."""
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
    """Raise UsageError if ``spec`` is a path to images that does not exist or cannot be read."""
    if not spec.startswith(NOT_PATHS):
        find_path(spec)


def find_path(spec: str) -> Path:
    """Return the path of the folder or file. Raises UsageError if it does not exist or cannot be read."""
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
