"""Record each unreadable image of a run once, and stop the run if there are too many."""

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fastmim.data.loading.dataset import UnreadableRecord
from fastmim.errors import RunError

SKIPPED = "skipped.jsonl"


class ReadBatch(Protocol):
    """A batch of images, with those that were opened and those that could not be read."""

    tried: NDArray[np.int64]
    unreadable: list[UnreadableRecord]


class UnreadableLog:
    """Keep skipped.jsonl, one object per unreadable image: index, image, reason.

    Args:
        path: the file; its existing entries are read.
        images: number of images in the data.
        limit: share of the images, 0..1, that may be unreadable.
    """

    def __init__(self, path: Path, images: int, limit: float) -> None:
        self._path = path
        self._limit = limit
        self._images = images
        self._tried = np.zeros(images, dtype=bool)
        self._read = 0  # bytes of the file so far
        self._in_file: dict[int, str] = {}
        path.touch()
        self.skipped = dict(self._listed())
        self._tried[list(self.skipped)] = True

    def note(self, batch: ReadBatch) -> None:
        """Record the unreadable images of a batch. Raises RunError if their share exceeds the limit."""
        self._tried[batch.tried] = True
        for item in batch.unreadable:
            if item.index in self.skipped:
                continue
            self.skipped[item.index] = item.reason
            with self._held():
                if item.index not in self._listed():  # no other process listed it
                    self._append({"index": item.index, "image": item.name, "reason": item.reason})
        if batch.unreadable:
            self._check()

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """Lock the file against other processes of the run within the block, if the system supports locks."""
        self._path.touch()
        if sys.platform == "win32":
            yield
            return
        import fcntl

        descriptor = os.open(self._path, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _listed(self) -> dict[int, str]:
        """Return the reason of each image that the file lists so far, by the image's index."""
        if self._path.stat().st_size < self._read:  # the file was restarted
            self._read, self._in_file = 0, {}
        with self._path.open("rb") as file:
            file.seek(self._read)
            content = file.read()
        self._read += len(content)
        for line in content.split(b"\n"):
            match _entry(line):
                case {"index": int(index), "reason": str(reason)} if 0 <= index < self._images:
                    self._in_file[index] = reason
                case _:  # cut off by a crash, or damaged: the image will be tried again
                    continue
        return self._in_file

    def _append(self, entry: dict[str, Any]) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, (json.dumps(entry) + "\n").encode())
        finally:
            os.close(descriptor)

    def _check(self) -> None:
        """Raise RunError if too many images are unreadable.

        Their number exceeds the limit for all images, or the limit for the images tried so far by three sigma
        and one.
        """
        skipped, tried = len(self.skipped), int(self._tried.sum())
        expected = self._limit * tried
        if skipped > self._limit * self._images or skipped > expected + 3 * math.sqrt(expected) + 1:
            index, reason = next(iter(self.skipped.items()))
            raise RunError(
                f"{skipped} of the {tried} images opened so far cannot be read, more than "
                f"max_unreadable = {self._limit:g} allows; the first is image {index}: {reason}; "
                f"{self._path} lists them"
            )


def _entry(line: bytes) -> Any:
    """Parse a line of the file; None if the line is not JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):  # ValueError includes invalid UTF-8
        return None
