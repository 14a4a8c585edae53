"""Shared by all benchmarks: contestants timed in turns, the device's peak, and lines of a table."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from fastmim.system.hardware import available_cpus, device_name, processor_name

PACKAGES = (
    "fastmim",
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "opencv-python-headless",
    "simplejpeg",
    "datasets",
)
PEAK_SHAPES = ((4096, 4096, 4096), (8192, 3072, 768), (8192, 768, 3072))  # rows, columns, depth
WARM_UP = 2  # calls of each contestant before the measured ones


@dataclass(frozen=True)
class Figure:
    """One line of a benchmark: a measurement and its comparison."""

    name: str
    ours: float
    unit: str
    """Unit of ``ours`` and ``baseline``: images/s, ms, MiB, dB ..."""
    against: str = ""
    """Description of the baseline."""
    baseline: float | None = None
    ratio: float | None = None
    """Improvement over the baseline; above 1 is better, whatever the unit."""
    share: float | None = None
    """Share of the limit, 0..1."""
    limit: str = ""
    """Description of the limit."""
    target: str = ""
    """Description of the target."""
    met: bool | None = None
    """Whether the target is met."""


def side_by_side(
    contestants: Mapping[str, Callable[[], Any]],
    device: torch.device,
    rounds: int = 5,
    warm_up: int = WARM_UP,
) -> dict[str, list[float]]:
    """Measure the seconds of each call, with the contestants in turns (A B C A B C ...), under the same load.

    Args:
        contestants: by name; one call does all of the work once.
        device: synchronised before and after each call.
        rounds: measured calls of each contestant.
        warm_up: calls of each contestant before the measured ones.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for contestant in contestants.values():
        for _ in range(warm_up):
            contestant()
    for _ in range(rounds):
        for name, contestant in contestants.items():
            seconds[name].append(timed(contestant, device))
    return seconds


def timed(call: Callable[[], Any], device: torch.device) -> float:
    """Measure the seconds of one call, until the device has finished."""
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait for the device to finish its queued work; a CPU has none."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """Return the median of each list of seconds."""
    return {name: statistics.median(times) for name, times in seconds.items()}


def matmul_peak(device: torch.device, dtype: torch.dtype, repeats: int = 8) -> float:
    """Measure the peak rate of the device: multiplications and additions per second on large matrices."""
    best = 0.0
    for rows, columns, depth in PEAK_SHAPES:
        a = torch.randn(rows, depth, device=device, dtype=dtype)
        b = torch.randn(columns, depth, device=device, dtype=dtype)

        def product(a: Tensor = a, b: Tensor = b) -> Tensor:
            return torch.nn.functional.linear(a, b)

        seconds = side_by_side({"matmul": product}, device, repeats)["matmul"]
        best = max(best, 2 * rows * columns * depth / min(seconds))
    return best


def machine(device: torch.device) -> dict[str, Any]:
    """Describe the machine and the versions of the packages."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": processor_name(),
        "cpus": available_cpus(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(memory / 2**30, 1),
        "device": device_name(device),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }
