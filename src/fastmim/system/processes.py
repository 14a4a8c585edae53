"""A function over many jobs in worker processes that end with their parent."""

import multiprocessing as mp
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any, TypeVar

import cv2

from fastmim.errors import RunError

Result = TypeVar("Result")


def in_processes(
    function: Callable[..., Result], shared: tuple[Any, ...], jobs: Sequence[Any], workers: int
) -> Iterator[tuple[int, Result]]:
    """(number of the job, ``function(*shared, job)``) as they are done; 0 or 1 workers: in this process.

    ``shared`` goes to each worker once. Where the caller stops, jobs that were begun are ended first.

    Raises:
        RunError: a worker was killed.
        Exception: what the function raised, as it raised it.
    """
    if workers <= 1 or len(jobs) <= 1:
        for number, job in enumerate(jobs):
            yield number, function(*shared, job)
        return
    pool = ProcessPoolExecutor(min(workers, len(jobs)), initializer=_start, initargs=(function, shared))
    try:
        numbers = {pool.submit(_call, job): number for number, job in enumerate(jobs)}
        for future in as_completed(numbers):
            yield numbers[future], future.result()
    except BrokenProcessPool as error:
        raise RunError("a worker process was killed, perhaps for want of memory; try fewer") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_work: list[Any] = []  # of a worker process: the function, and what all jobs share


def _start(function: Callable[..., Any], shared: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to answer
    cv2.setNumThreads(0)
    _work[:] = [function, shared]
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = mp.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _call(job: Any) -> Any:
    function, shared = _work
    return function(*shared, job)
