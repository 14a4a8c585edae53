"""Checkpoint files that detect their own damage: torch archives with a checksum.

The checksum is the archive's zip comment, so torch reads the file as usual. Archives without a checksum (of
earlier versions) are checked by the CRCs that torch writes for each part.
"""

import hashlib
import os
import re
import stat
import zipfile
from pathlib import Path
from typing import IO, Any, cast

import torch

COMMENT = re.compile(rb"fastmim checkpoint step (\d{1,18}) blake2b ([0-9a-f]{64})")
END_OF_ZIP = b"PK\x05\x06"
END_BYTES = 22  # length of a zip archive's last record, without the comment
CHUNK = 1 << 20


class Damaged(Exception):
    """A damaged file; the message completes a sentence about it, as "is cut off"."""


def write_sealed(state: dict[str, Any], step: int, file: IO[bytes]) -> None:
    """Write ``state`` to a file opened for writing, with a checksum."""
    hashed = _Hashed(file)
    torch.save(state, cast("IO[bytes]", hashed))
    if hashed.last != b"\0\0":
        raise RuntimeError("torch wrote no plain zip archive, so it cannot be sealed")
    comment = b"fastmim checkpoint step %d blake2b %s" % (step, _seal(hashed.digest, step))
    file.seek(-2, os.SEEK_END)  # the length of the comment, which torch has written as 0
    file.write(len(comment).to_bytes(2, "little") + comment)


def check_sealed(path: Path) -> None:
    """Raise Damaged unless the file is intact; OSError if it cannot be read."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise Damaged("is not a file")
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 256))
        match = re.search(COMMENT.pattern + rb"\Z", file.read())
        if match is None:
            _check_archive(path, size)
            return
        body = size - len(match[0]) - 2
        digest = hashlib.blake2b(digest_size=32)
        file.seek(0)
        for start in range(0, body, CHUNK):
            digest.update(file.read(min(CHUNK, body - start)))
        digest.update(b"\0\0")
        length = int.from_bytes(file.read(2), "little")
    if length != len(match[0]) or _seal(digest, int(match[1])) != match[2]:
        raise Damaged("is damaged (its checksum is wrong)")


def sealed_step(path: Path) -> int | None:
    """Return the step recorded in a sealed file; None for others. The file is not verified."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 256))
            match = re.search(COMMENT.pattern + rb"\Z", file.read())
    except OSError:
        return None
    return int(match[1]) if match else None


def _seal(digest: hashlib.blake2b, step: int) -> bytes:
    """Return the digest of the file and of the step that its comment states."""
    whole = digest.copy()
    whole.update(b"%d" % step)
    return whole.hexdigest().encode()


def _check_archive(path: Path, size: int) -> None:
    """Verify the CRC of each part of an archive without a checksum. Raises Damaged."""
    with path.open("rb") as file:
        file.seek(max(0, size - END_BYTES))
        end = file.read()
    if len(end) < END_BYTES or not end.startswith(END_OF_ZIP) or end[-2:] != b"\0\0":
        raise Damaged("is damaged (cut off, or no checkpoint at all)")
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            # torch writes neither compression nor attributes, which could make its reader see a folder.
            if any(part.compress_type != zipfile.ZIP_STORED or part.external_attr for part in parts):
                raise Damaged("is damaged (no archive of torch's)")
            for part in parts:
                with archive.open(part) as content:
                    while content.read(CHUNK):
                        pass
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError, OSError) as error:
        raise Damaged("is damaged (a checksum in it is wrong)") from error


class _Hashed:
    """File wrapper that computes a checksum of the data written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.blake2b(digest_size=32)
        self.last = b""

    def write(self, data: Any) -> int:
        self.digest.update(data)
        self.last = (self.last + bytes(data[-2:]))[-2:]
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()
