"""Signals that stop a run: the first after the current step, with a checkpoint; the second at once."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType, TracebackType
from typing import Any

from fastmim.errors import Interrupted

# Ctrl-C; the default of `kill`; a closed terminal; SLURM's warning before a job's time limit.
STOPPING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)
)
Handler = Callable[[int, FrameType | None], Any] | int | None
HANG_UP = getattr(signal, "SIGHUP", None)
NOTED = b"fastmim: stopping after this step, with a checkpoint; a second signal (Ctrl-C) ends it at once\n"


class StopRequest:
    """Record the first of `STOPPING` within the block; raise Interrupted at the second one.

    While there is nothing to lose, as before the end of the first step, the first one raises Interrupted as
    well.

    Args:
        supervised: a launcher kills this process if it has to end at once. Signals never raise Interrupted
            then, since the terminal and the launcher may both send one. In a child process of
            multiprocessing, only SIGTERM raises it.
        says: report the first signal on standard error.
    """

    def __init__(self, supervised: bool = False, says: bool = False) -> None:
        self.signal: int | None = None
        self.nothing_to_lose = True
        child = multiprocessing.parent_process() is not None
        self._insisting = {signal.SIGTERM} if child else set() if supervised else set(STOPPING)
        self._counted = 0
        self._says = says
        self._process = os.getpid()
        self._terminals = [stream for stream in (1, 2) if os.isatty(stream)]
        self._previous: dict[int, Handler] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._previous = install(self._note)
            if multiprocessing.parent_process() is not None and hasattr(signal, "pthread_sigmask"):
                signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)  # see `processes.launch_processes`
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        restore(self._previous)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked loader process that has not set its handlers yet
            return
        if number == HANG_UP:
            self._leave_terminal()
        first, self.signal = self.signal is None, self.signal or number
        self._counted += number in self._insisting
        if number in self._insisting and (self._counted > 1 or self.nothing_to_lose):
            raise Interrupted(self.signal)
        if first and self._says:
            write(NOTED)

    def _leave_terminal(self) -> None:
        """Redirect output to /dev/null, since writing to a closed terminal is an error."""
        with contextlib.suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for stream in self._terminals:
                os.dup2(nowhere, stream)
            os.close(nowhere)


def install(handler: Callable[[int, FrameType | None], object]) -> dict[int, Handler]:
    """Install ``handler`` for the signals that stop a run; return the handlers before it."""
    kept = signal.getsignal(HANG_UP) == signal.SIG_IGN if HANG_UP else False  # set by nohup
    return {number: signal.signal(number, handler) for number in STOPPING if number != HANG_UP or not kept}


def write(line: bytes) -> None:
    """Write to standard error from a signal handler, where buffered streams cannot be used."""
    with contextlib.suppress(OSError):
        os.write(2, b"\n" + line if os.isatty(2) else line)


def restore(handlers: dict[int, Handler]) -> None:
    """Restore signal handlers, except those that were not set by Python."""
    for number, handler in handlers.items():
        if handler is not None:
            signal.signal(number, handler)


@contextlib.contextmanager
def interruptible(numbers: Iterable[int] = STOPPING) -> Iterator[None]:
    """Raise Interrupted at a signal within the block, so that unfinished work is cleaned up."""
    process = os.getpid()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if os.getpid() == process:
            raise Interrupted(number)
        signal.signal(number, signal.SIG_DFL)  # in a forked process
        os.kill(os.getpid(), number)

    previous: dict[int, Handler] = {}
    if threading.current_thread() is threading.main_thread():
        for number in numbers:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                previous[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        restore(previous)
