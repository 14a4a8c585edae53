"""The pool of worker processes: order, threads, what is begun after a stop, and a worker that dies."""

import os
import signal
import time
from itertools import islice
from typing import Any

import cv2
import pytest
import torch

from fastmim.errors import RunError
from fastmim.system.processes import in_processes, process_pool


def power(base, job):
    time.sleep(0.2 if job == 0 else 0)
    return base**job, os.getpid()


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_results_come_in_order_or_as_they_are_done(workers):
    jobs = list(range(6))
    ordered = list(in_processes(power, (3,), jobs, workers, ordered=True))
    assert [(number, value) for number, (value, _) in ordered] == [(job, 3**job) for job in jobs]
    first = list(in_processes(power, (3,), jobs, workers))
    assert sorted(number for number, _ in first) == jobs
    assert {number: value for number, (value, _) in first} == {job: 3**job for job in jobs}
    if workers == 2:
        assert first[0][0] != 0  # the slow one
    processes = {process for _, (_, process) in ordered}
    assert (os.getpid() in processes) == (workers < 2)
    assert len(processes) <= max(1, workers)


def threads_of(_):
    return torch.get_num_threads(), cv2.getNumThreads(), signal.getsignal(signal.SIGINT)(2, None)


@pytest.mark.parametrize("threads", [1, 2])
def test_workers_have_so_many_threads_and_leave_ctrl_c_to_their_parent(threads):
    for _, (of_torch, of_cv2, answer) in in_processes(threads_of, (), [0, 1], 2, threads=threads):
        assert (of_torch, of_cv2, answer) == (threads, threads, None)


def touch(folder, job):
    (folder / f"{job} begun").touch()
    if job > 2:
        time.sleep(60)
        (folder / f"{job} done").touch()
    return job


@pytest.mark.parametrize("start_method", [None, "spawn"])
def test_a_stop_ends_the_running_jobs_and_begins_no_further_one(tmp_path, start_method):
    jobs = list(range(20))
    results: Any = in_processes(touch, (tmp_path,), jobs, 2, start_method=start_method, terminate=True)
    assert len(list(islice(results, 3))) == 3
    while len(list(tmp_path.iterdir())) < 5:
        time.sleep(0.01)
    results.close()
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"{job} begun" for job in range(5)]


def wrong(job):
    raise ValueError(f"job {job}")


def die(job):
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_job_raises_is_raised_and_a_death_is_one_line():
    with pytest.raises(ValueError, match=r"^job \d$"):
        list(in_processes(wrong, (), [1, 2, 3], 2))
    with pytest.raises(
        RunError, match=r"^a worker process was killed, perhaps for lack of memory; try fewer$"
    ):
        list(in_processes(die, (), [1, 2, 3], 2))
    with pytest.raises(RunError, match=r"memory$"), process_pool(1, "spawn") as pool:
        pool.submit(die, 0).result()
