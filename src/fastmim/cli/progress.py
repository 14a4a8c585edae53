"""Show how many images are done, and which could not be read."""

import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_APART = 30.0  # of progress lines, where there is no terminal
SHOWN = 5  # unreadable images


class ShownProgress:
    """Progress bar on a terminal, a line every 30 s elsewhere, nothing if ``quiet``."""

    def __init__(self, verb: str, quiet: bool) -> None:
        self._console = Console(stderr=True, quiet=quiet, highlight=False)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        shown = self._console.is_terminal and not quiet
        # Without the thread that refreshes it: processes are forked meanwhile.
        self._bar = Progress(*columns, console=self._console, disable=not shown, auto_refresh=False)
        self._task = self._bar.add_task(verb, total=None)
        self._verb = verb
        self._told = time.monotonic()

    def __enter__(self) -> "ShownProgress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, done: int, images: int) -> None:
        self._bar.update(self._task, completed=done, total=images, refresh=True)
        if self._bar.disable and time.monotonic() - self._told >= SECONDS_APART:
            self._told = time.monotonic()
            self._console.print(f"{self._verb} {done} of {images} images")


def print_left_out(notes: Sequence[str], unreadable: Sequence[str]) -> None:
    """Print messages about the data, and the first of the images that could not be read."""
    for note in notes:
        print(f"data: {note}")
    for line in unreadable[:SHOWN]:
        print(f"left out: {line}")
    if len(unreadable) > SHOWN:
        print(f"left out: {len(unreadable) - SHOWN} more")
