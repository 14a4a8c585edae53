"""Compare ways for threads to wait: a step on a quiet CPU, and alongside a busy process."""

import contextlib
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

import torch

from fastmim.bench.harness import FIRST_STEPS, Bench, prepare
from fastmim.bench.measure import Figure
from fastmim.config import PretrainConfig
from fastmim.system.processes import process_pool
from fastmim.system.threads import BLOCK_TIME, BRIEFLY, POLICY, SPIN
from fastmim.train.settings import KernelConfig

SECONDS = 2.0  # of steps per turn
USUAL = KernelConfig("fused", "contiguous", "none", "fused")
SLOWEST = 1.1  # times PyTorch's own way on a quiet machine, at most
GAIN = 1.5  # times as fast as PyTorch's own way alongside a busy process, at least


@dataclass(frozen=True)
class Way:
    """Number of threads of a process, and how they wait for each other."""

    name: str
    variables: Mapping[str, str | None]
    """Environment variables set before PyTorch is loaded; None: not set."""
    threads: int


def ways(threads: int) -> list[Way]:
    """Return the ways to compare; the first is ours, the second PyTorch's default."""
    unset = dict.fromkeys((POLICY, SPIN, BLOCK_TIME))
    found = [
        Way("waiting briefly", unset | BRIEFLY, threads),
        Way("as PyTorch waits", unset, threads),
        Way("asleep at once", unset | {POLICY: "PASSIVE"}, threads),
    ]
    return [*found, Way("one thread", unset | BRIEFLY, 1)] if threads > 1 else found


def bench_shared(configs: Sequence[PretrainConfig], rounds: int, say: Callable[[str], None]) -> list[Figure]:
    """Measure each config's step on a quiet machine and alongside one process that is always busy.

    Args:
        rounds: measured turns of each way.
    """
    return [line for config in configs for line in _lines(config, rounds, say)]


def _lines(config: PretrainConfig, rounds: int, say: Callable[[str], None]) -> Iterator[Figure]:
    what = f"{config.model} at {config.size[0]}x{config.size[1]}, batch {config.batch_size}"
    contestants = ways(torch.get_num_threads())
    seconds: dict[tuple[bool, str], list[float]] = {}
    with contextlib.ExitStack() as stack:
        pools = {way.name: stack.enter_context(_started(config, way)) for way in contestants}
        for busy in (False, True):
            with _busy() if busy else contextlib.nullcontext():
                for _ in range(rounds):
                    for name, pool in pools.items():
                        seconds.setdefault((busy, name), []).append(pool.submit(_steps).result())
    rate = {key: config.batch_size / statistics.median(times) for key, times in seconds.items()}
    for busy, where in ((False, "quiet"), (True, "alongside a busy process")):
        say(f"{what}, {where}: " + ", ".join(f"{w.name} {rate[busy, w.name]:.1f}" for w in contestants))
    ours, theirs, *_ = (way.name for way in contestants)
    quiet, crowded = (rate[busy, ours] / rate[busy, theirs] for busy in (False, True))
    yield Figure(
        f"step of {what}, on a quiet machine",
        rate[False, ours],
        "images/s",
        "PyTorch's way of waiting",
        rate[False, theirs],
        quiet,
        target=f"at least {1 / SLOWEST:.2f}x",
        met=quiet >= 1 / SLOWEST,
    )
    yield Figure(
        "the same alongside one busy process",
        rate[True, ours],
        "images/s",
        "PyTorch's way of waiting",
        rate[True, theirs],
        crowded,
        target=f"at least {GAIN:g}x",
        met=crowded >= GAIN,
    )


@contextlib.contextmanager
def _started(config: PretrainConfig, way: Way) -> Iterator[ProcessPoolExecutor]:
    """Start a process that holds a step of ``config`` and waits in the given way."""
    before = {name: os.environ.get(name) for name in way.variables}
    _set(way.variables)
    try:
        with process_pool(1, "spawn") as pool:
            pool.submit(_prepare, replace(config, kernels=replace(USUAL, threads=way.threads))).result()
            _set(before)
            yield pool
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


_bench: list[Bench] = []  # prepared in this process


def _prepare(config: PretrainConfig) -> None:
    _bench[:] = [prepare(config)]
    for _ in range(FIRST_STEPS):
        _bench[0].step()


def _steps() -> float:
    """Measure the mean seconds per step."""
    start, steps = time.perf_counter(), 0
    while (took := time.perf_counter() - start) < SECONDS:
        _bench[0].step()
        steps += 1
    return took / steps


@contextlib.contextmanager
def _busy() -> Iterator[None]:
    """Run a process that computes all the time, within the block."""
    process = multiprocessing.get_context("spawn").Process(target=_for_ever, daemon=True)
    process.start()
    time.sleep(0.5)
    try:
        yield
    finally:
        process.kill()
        process.join()


def _for_ever() -> None:
    while True:
        pass
