"""Check COCO's run-length encodings of masks before they reach C code, which does not."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

BITS, MORE, NEGATIVE = 5, 0x20, 0x10  # of a character: payload, and flags of continuation and sign
LONGEST = 7  # characters of a number below 2**31
MOST_PIXELS = 1 << 31


def run_lengths(counts: list[int] | str | bytes) -> NDArray[np.int64]:
    """Return the lengths of the runs of a mask, column by column: of 0, of 1, of 0, ...

    Args:
        counts: the lengths themselves, or COCO's text: numbers in groups of 5 bits, the lowest first, each
            from the fourth on as the difference from the one two places before.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(counts, list):
        if not all(isinstance(count, int) and 0 <= count < MOST_PIXELS for count in counts):
            raise ValueError("lengths that are not whole numbers from 0 on")
        return np.array(counts, np.int64)
    if not isinstance(counts, str | bytes):
        raise ValueError(f"lengths as {type(counts).__name__}")
    text = counts.encode("utf-8") if isinstance(counts, str) else counts
    values = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if not len(values):
        return np.zeros(0, np.int64)
    if values.min() < 0 or values.max() > 63 or values[-1] & MORE:
        raise ValueError("characters that encode no numbers")
    ends = np.flatnonzero(values & MORE == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if (ends - starts).max() >= LONGEST:
        raise ValueError("a number that is too large")
    places = np.arange(len(values)) - np.repeat(starts, ends - starts + 1)
    numbers = np.add.reduceat((values & 31) << (BITS * places), starts)
    numbers -= np.where(values[ends] & NEGATIVE, 1 << (BITS * (ends - starts + 1)), 0)
    lengths = numbers.copy()
    for first in (1, 2):
        lengths[first::2] = np.cumsum(numbers[first::2])
    if lengths.min() < 0:
        raise ValueError("a negative length")
    return lengths


def check_encoding(encoding: dict[str, Any], size: tuple[int, int] | None) -> None:
    """Raise ValueError unless the runs of a mask fill an image.

    Args:
        encoding: with ``size`` (H, W) and ``counts``.
        size: (H, W) of the image; None if it is not known.
    """
    given = encoding["size"]
    if not isinstance(given, list | tuple) or len(given) != 2 or not all(type(n) is int for n in given):
        raise ValueError(f"size {given!r}")
    height, width = given
    if size is not None and (height, width) != tuple(size):
        raise ValueError(f"a mask of {height}x{width} pixels for an image of {size[0]}x{size[1]}")
    if not 0 < height * width < MOST_PIXELS or height < 0:
        raise ValueError(f"size {given!r}")
    lengths = run_lengths(encoding["counts"])
    if lengths.sum() != height * width:
        raise ValueError(f"runs of {lengths.sum():,} pixels in a mask of {height}x{width}")
