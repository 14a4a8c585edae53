"""Loader processes: what they raise ends the run, and nothing that happens to them can hang it."""

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
SECONDS_TO_END = 5.0  # that a worker gets for what it is doing; then it is killed
SHARED_MEMORY = Path("/dev/shm")
SHARED_MEMORY_WORDS = ("shared memory", "Bus error", "shm", "No space left on device", "/torch_")

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class _Failure:
    """What a question raised in a worker: exceptions are not always picklable, their text is."""

    kind: type[FastmimError]
    message: str
    trace: str


class _Answers(Dataset[Any]):
    """A data set whose exceptions are answers, too."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitem__(self, question: Any) -> Any:
        try:
            return self.dataset[question]
        except Exception as error:
            kind = type(error) if isinstance(error, FastmimError) else RunError
            return _Failure(kind, _reason(error), traceback.format_exc())


class WorkerTraceback(Exception):
    """Where an error arose in a loader process: the cause of the RunError, shown by ``--debug``."""

    def __init__(self, trace: str) -> None:
        super().__init__(f"in a loader process:\n\n{trace}")


def answers(
    dataset: Dataset[Answer], questions: Iterable[Any], workers: int, pin_memory: bool = False
) -> Iterator[Answer]:
    """``dataset[question]`` of each question, in order, prepared by ``workers`` processes (0: by this one).

    The processes end within seconds when the iterator is closed, or when this process ends.

    Raises:
        RunError: a question raised an exception that is not ours, or a process was killed.
        FastmimError: as a question raised it.
    """
    loader: DataLoader[Any] = DataLoader(
        _Answers(dataset),
        batch_size=None,
        sampler=questions,
        num_workers=workers,
        prefetch_factor=PREFETCHED_BATCHES if workers else None,
        pin_memory=pin_memory,
        worker_init_fn=prepare_worker,
        generator=torch.Generator(),  # else torch's own would be drawn from
    )
    before = set(mp.active_children())
    processes: list[BaseProcess] = []
    iterator: Iterator[Any] = iter(())
    # At exit multiprocessing waits for its processes, and ours ignore the signal that it sends them first.
    at_exit = Finalize(None, _kill, (processes,), exitpriority=100)
    try:
        try:
            iterator = iter(loader)
            processes += [process for process in mp.active_children() if process not in before]
            for answer in iterator:
                if isinstance(answer, _Failure):
                    message = _with_hint(answer.message, workers)
                    raise answer.kind(message) from WorkerTraceback(answer.trace)
                yield answer
                del answer  # its memory is free while the next one is waited for
        except FastmimError:
            raise
        except (RuntimeError, OSError) as error:  # of the loader itself
            raise RunError(_with_hint(_reason(error), workers)) from error
    finally:
        _shut_down(iterator, processes)
        at_exit.cancel()


def check_shared_memory(nbytes: int) -> None:
    """Raises RunError where a worker has no room for a batch: writing it would kill the process."""
    if SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free < nbytes:
        raise RunError(f"a batch of {nbytes / 1e6:.3g} MB does not fit into shared memory")


def prepare_worker(_: int) -> None:
    """Take the first steps of a loader process; signals are the main process's to answer."""
    # It answers Ctrl-C and SIGTERM by writing a checkpoint; until then it needs its workers.
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
    """End the loader's processes, by force where one is still busy after `SECONDS_TO_END`."""
    timer = threading.Timer(SECONDS_TO_END, _kill, (processes,))
    timer.daemon = True
    timer.start()
    try:
        # What torch does when the iterator is collected, which a traceback could delay.
        with suppress(RuntimeError):  # it reports processes that the timer killed
            getattr(iterator, "_shutdown_workers", lambda: None)()
    finally:
        timer.cancel()
        _kill(processes)


def _kill(processes: list[BaseProcess]) -> None:
    for process in processes:
        with suppress(ValueError, OSError):
            if process.is_alive():
                process.kill()
                process.join()
