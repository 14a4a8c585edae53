"""Type of a function that reports progress."""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called from time to time with (images done, images in total)."""


def no_progress(done: int, images: int) -> None:
    """Report nothing."""
