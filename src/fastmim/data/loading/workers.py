"""Loader processes: their exceptions end the run, and no failure of a process can hang the run."""

import multiprocessing as mp
import shutil
import signal
import threading
import traceback
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, TypeVar

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from fastmim.data.decode.pixels import with_class
from fastmim.errors import FastmimError, RunError

PREFETCHED_BATCHES = 3  # per worker
SECONDS_TO_END = 5.0  # for a busy worker to finish; then it is killed
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
SHARED_MEMORY_WORDS = ("shared memory", "Bus error", "shm", "No space left on device", "/torch_")

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class _Failure:
    """An exception raised in a worker, as text, since exceptions are not always picklable."""

    kind: type[FastmimError]
    message: str
    trace: str


class _Answers(Dataset[Any]):
    """A data set that returns exceptions as answers instead of raising them."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitem__(self, question: Any) -> Any:
        try:
            return self.dataset[question]
        except Exception as error:
            kind = type(error) if isinstance(error, FastmimError) else RunError
            return _Failure(kind, _reason(error), traceback.format_exc())


class WorkerTraceback(Exception):
    """Traceback of an error in a loader process: the cause of the RunError, shown by ``--debug``."""

    def __init__(self, trace: str) -> None:
        super().__init__(f"in a loader process:\n\n{trace}")


def answers(
    dataset: Dataset[Answer], questions: Iterable[Any], workers: int, pin_memory: bool = False
) -> Iterator[Answer]:
    """Yield ``dataset[question]`` for each question, in order, from ``workers`` processes (0: this process).

    The processes end within seconds after the iterator is closed or this process ends.

    Raises:
        RunError: a question raised an exception other than a FastmimError, or a process was killed.
        FastmimError: a question raised this error.
    """
    # Configure the loader.
    loader: DataLoader[Any] = DataLoader(
        _Answers(dataset),
        batch_size=None,
        sampler=questions,
        num_workers=workers,
        prefetch_factor=PREFETCHED_BATCHES if workers else None,
        pin_memory=pin_memory,
        worker_init_fn=prepare_worker,
        generator=torch.Generator(),  # otherwise the loader draws from torch's global generator
    )
    # Prepare to end the processes.
    before = set(mp.active_children())
    processes: list[BaseProcess] = []
    iterator: Iterator[Any] = iter(())
    # At exit multiprocessing sends a signal to its processes, which ours ignore, and then waits for them.
    at_exit = Finalize(None, _kill, (processes,), exitpriority=100)
    try:
        try:
            # Start the processes, and yield their answers.
            iterator = iter(loader)
            processes += [process for process in mp.active_children() if process not in before]
            for answer in iterator:
                if isinstance(answer, _Failure):
                    message = _with_hint(answer.message, workers)
                    raise answer.kind(message) from WorkerTraceback(answer.trace)
                yield answer
                del answer  # frees its memory while waiting for the next one
        except FastmimError:
            raise
        except (RuntimeError, OSError) as error:  # raised by the loader itself
            raise RunError(_with_hint(_reason(error), workers)) from error
    finally:
        _shut_down(iterator, processes)
        at_exit.cancel()


def check_shared_memory(nbytes: int) -> None:
    """Raise RunError if shared memory has no room for a batch: writing the batch would kill the worker."""
    if SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free < nbytes:
        raise RunError(f"a batch of {nbytes / 1e6:.3g} MB does not fit into shared memory")


def prepare_worker(_: int) -> None:
    """Initialise a loader process: leave signals to the main process, and use a single OpenCV thread."""
    # The main process answers Ctrl-C and SIGTERM by writing a checkpoint, and needs its workers until then.
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    cv2.setNumThreads(0)


def _reason(error: Exception) -> str:
    if isinstance(error, FastmimError):
        return str(error)
    return f"loading images failed: {with_class(error)}"


def _with_hint(message: str, workers: int) -> str:
    if not workers:
        return message
    if any(word in message for word in SHARED_MEMORY_WORDS):
        size = f", {shutil.disk_usage(SHARED_MEMORY).total / 1e6:.3g} MB," if SHARED_MEMORY.is_dir() else ""
        return (
            f"{message}; {SHARED_MEMORY}{size} is too small for {workers} loader processes: start the "
            "container with more (docker run --shm-size=8g), or give --workers 0 or a smaller --batch-size"
        )
    if "killed by signal" in message or "exited unexpectedly" in message:
        return f"{message}; perhaps memory ran out: try fewer --workers (0: none) or a smaller --batch-size"
    return message


def _shut_down(iterator: Iterator[Any], processes: list[BaseProcess]) -> None:
    """End the loader's processes; kill those that are still busy after `SECONDS_TO_END`."""
    timer = threading.Timer(SECONDS_TO_END, _kill, (processes,))
    timer.daemon = True
    timer.start()
    try:
        # torch does this when the iterator is garbage-collected, which a traceback could delay.
        with suppress(RuntimeError):  # torch reports processes that the timer killed
            getattr(iterator, "_shutdown_workers", lambda: None)()
    finally:
        timer.cancel()
        timer.join()  # or the timer's thread, which has reaped a process, may not have recorded its end yet
        _kill(processes)


def _kill(processes: list[BaseProcess]) -> None:
    for process in processes:
        with suppress(ValueError, OSError):
            if process.is_alive():
                process.kill()
                process.join()
