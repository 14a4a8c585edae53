"""The unreadable images of a run: written down once each, and too many of them stop it."""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from fastmim.data.loader import Batch
from fastmim.errors import RunError

SKIPPED = "skipped.jsonl"


class SkipList:
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
        self.skipped: dict[int, str] = {}
        path.touch()
        for line in path.read_bytes().split(b"\n"):
            match _entry(line):
                case {"index": int(index), "reason": str(reason)} if 0 <= index < images:
                    self.skipped[index] = reason
                case _:  # cut off by a crash, or damaged: the image will be met again
                    continue
        self._tried[list(self.skipped)] = True

    def note(self, batch: Batch) -> None:
        """Take in what a batch met. Raises RunError where more than the limit cannot be read."""
        self._tried[batch.tried] = True
        for item in batch.unreadable:
            if item.index in self.skipped:
                continue
            self.skipped[item.index] = item.reason
            line = json.dumps({"index": item.index, "image": item.name, "reason": item.reason}) + "\n"
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(descriptor, line.encode())
            finally:
                os.close(descriptor)
        if batch.unreadable:
            self._check()

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
