"""The unreadable images of a run: written down once each, and too many of them stop it."""

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fastmim.data.loading.dataset import Batch
from fastmim.errors import RunError

SKIPPED = "skipped.jsonl"


class UnreadableLog:
    """Keeps skipped.jsonl, one object an image: index, image, reason.

    Args:
        path: the file; what stands in it already is taken over.
        images: how many images the data holds.
        limit: share of them, 0..1, that may be unreadable.
    """

    def __init__(self, path: Path, images: int, limit: float) -> None:
        self._path = path
        self._limit = limit
        self._images = images
        self._tried = np.zeros(images, dtype=bool)
        self._read = 0  # bytes of the file
        self._in_file: dict[int, str] = {}
        path.touch()
        self.skipped = dict(self._listed())
        self._tried[list(self.skipped)] = True

    def note(self, batch: Batch) -> None:
        """Take in what a batch met. Raises RunError where more than the limit cannot be read."""
        self._tried[batch.tried] = True
        for item in batch.unreadable:
            if item.index in self.skipped:
                continue
            self.skipped[item.index] = item.reason
            with self._held():
                if item.index not in self._listed():  # by another process
                    self._append({"index": item.index, "image": item.name, "reason": item.reason})
        if batch.unreadable:
            self._check()

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """Within the block no other process of the run writes, where the file system has locks."""
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
        """The reason by the image's index, for all that the file names by now."""
        if self._path.stat().st_size < self._read:  # somebody began it anew
            self._read, self._in_file = 0, {}
        with open(self._path, "rb") as file:
            file.seek(self._read)
            content = file.read()
        self._read += len(content)
        for line in content.split(b"\n"):
            match _entry(line):
                case {"index": int(index), "reason": str(reason)} if 0 <= index < self._images:
                    self._in_file[index] = reason
                case _:  # cut off by a crash, or damaged: the image will be met again
                    continue
        return self._in_file

    def _append(self, entry: dict[str, Any]) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, (json.dumps(entry) + "\n").encode())
        finally:
            os.close(descriptor)

    def _check(self) -> None:
        """Stop where the share is above the limit for sure: counted over all, or three sigma above it."""
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
    """What a line of the file holds; None where that is no JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):  # what is no UTF-8 included
        return None
