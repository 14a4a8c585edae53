"""Process pool whose workers end with this process and leave Ctrl-C to it."""

import multiprocessing as mp
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing.connection import wait as wait_for
from typing import Any, Literal, TypeVar

from fastmim.errors import RunError

Result = TypeVar("Result")
StartMethod = Literal["fork", "spawn", "forkserver"]


@contextmanager
def process_pool(
    workers: int,
    start_method: StartMethod | None = None,
    terminate: bool = True,
    first: Callable[[], object] | None = None,
) -> Iterator[ProcessPoolExecutor]:
    """Open a pool of ``workers`` processes within the block.

    Args:
        start_method: spawn, for processes that must not share this one's threads, memory or environment.
            Default: the system's.
        terminate: if the block raises, send SIGTERM to the workers; otherwise wait for running jobs.
        first: called in each worker before its first job.

    Raises:
        RunError: a worker was killed.
    """
    context = mp.get_context(start_method)
    before = set(mp.active_children())
    pool = ProcessPoolExecutor(workers, context, _begin, (first,))
    try:
        yield pool
    except BaseException as error:
        if terminate:
            for child in set(mp.active_children()) - before:
                child.terminate()
        if isinstance(error, BrokenProcessPool):
            fewer = "; try fewer" if workers > 1 else ""
            raise RunError(f"a worker process was killed, perhaps for lack of memory{fewer}") from error
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def in_processes(
    function: Callable[..., Result],
    shared: tuple[Any, ...],
    jobs: Sequence[Any],
    workers: int,
    ordered: bool = False,
    threads: int = 1,
    start_method: StartMethod | None = None,
    terminate: bool = False,
) -> Iterator[tuple[int, Result]]:
    """Yield (number of the job, ``function(*shared, job)``) as jobs are done.

    With 0 or 1 workers, jobs run in this process. Workers have no queue of jobs, so that no job begins once
    this process stops.

    Args:
        shared: arguments that are sent to each worker once.
        ordered: yield the results in the order of the jobs.
        threads: threads per worker, for PyTorch and OpenCV.
        start_method, terminate: as for `process_pool`; by default, running jobs are waited for.

    Raises:
        RunError: a worker was killed.
        Exception: as raised by the function.
    """
    # Run the jobs in this process.
    if workers <= 1:
        for number, job in enumerate(jobs):
            yield number, function(*shared, job)
        return
    # Give each worker one job at a time, and yield results as they are due.
    waiting = iter(enumerate(jobs))
    running: dict[Future[Result], int] = {}
    done: dict[int, Result] = {}
    following = 0
    workers = min(workers, max(1, len(jobs)))
    with process_pool(workers, start_method, terminate, _First(function, shared, threads)) as pool:
        while True:
            for number, job in islice(waiting, workers - len(running)):
                running[pool.submit(_call, job)] = number
            while done and (not ordered or following in done):
                number = following if ordered else next(iter(done))
                yield number, done.pop(number)
                following += 1
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                done[running.pop(future)] = future.result()


class _First:
    """Initialises a worker: its function, the arguments that all jobs share, and its number of threads."""

    def __init__(self, function: Callable[..., Any], shared: tuple[Any, ...], threads: int) -> None:
        self.work = (function, shared)
        self.threads = threads

    def __call__(self) -> None:
        _work[:] = self.work
        # The function's module has imported the libraries that it uses.
        if (torch := sys.modules.get("torch")) is not None:
            torch.set_num_threads(self.threads)
        if (cv2 := sys.modules.get("cv2")) is not None:
            cv2.setNumThreads(self.threads if self.threads > 1 else 0)


_work: list[Any] = []  # in a worker: the function, and the arguments that all jobs share


def _begin(first: Callable[[], object] | None) -> None:
    # The parent handles Ctrl-C. Programs started here inherit SIG_IGN, but not a handler.
    signal.signal(signal.SIGINT, lambda number, frame: None)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if first is not None:
        first()


def _end_with_parent() -> None:
    parent = mp.parent_process()
    if parent is not None:
        wait_for([parent.sentinel])
        os._exit(1)


def _call(job: Any) -> Any:
    function, shared = _work
    return function(*shared, job)
