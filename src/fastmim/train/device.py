"""What the device can do, seen by trying it: bfloat16, and how many images it holds at once."""

import ctypes
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from fastmim.encoders.batch_size import has_batch_norm
from fastmim.system.cache import remembered
from fastmim.system.documents import Finite

Precision = Literal["auto", "bf16-mixed", "32-true"]

CPU_MICRO_BATCH = 64  # larger ones are no faster on a CPU and cost memory
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # of malloc.h
MEMORY_SHARE = 0.6  # of what is free, for activations; the rest is for gradients, buffers and surprises
LOOKS, SECONDS_TO_LOOK = 5, 0.05
WORTH_IT = 1.2  # bfloat16 must be at least this much faster


@dataclass(frozen=True)
class _Gain:
    """What is remembered of bfloat16."""

    times: Finite


def choose_precision(device: torch.device) -> Literal["bf16-mixed", "32-true"]:
    """bf16-mixed where the device multiplies matrices faster in bfloat16, else 32-true."""
    if device.type == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    if device.type != "cpu":
        return "32-true"
    kept = remembered("bfloat16", about(device), lambda: {"times": _bfloat16_gain()}, _Gain)
    times_faster: float = kept["times"]
    return "bf16-mixed" if times_faster > WORTH_IT else "32-true"


def _bfloat16_gain() -> float:
    """How many times faster than in float32 this CPU multiplies matrices."""
    matrices = {dtype: torch.ones(512, 512, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}
    seconds: dict[torch.dtype, list[float]] = {dtype: [] for dtype in matrices}
    for _ in range(12):  # in turns, the shortest counts: something else may be running
        for dtype, matrix in matrices.items():
            start = time.perf_counter()
            matrix @ matrix
            seconds[dtype].append(time.perf_counter() - start)
    return min(seconds[torch.float32]) / min(seconds[torch.bfloat16])


def saved_bytes(module: nn.Module, forward: Callable[[], Any]) -> int:
    """Bytes that autograd keeps for the backward pass of ``forward()``, weights left out."""
    own = {tensor.untyped_storage().data_ptr() for tensor in module.state_dict().values()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = forward()  # alive until counted: a freed storage's address may be given out again
    total = sum(kept.values())
    del result
    return total


def others_compute(threads: int) -> bool:
    """Whether other processes leave fewer than ``threads`` of this machine's processors free just now."""
    running = []
    try:
        for _ in range(LOOKS):
            time.sleep(SECONDS_TO_LOOK)
            fields = dict(line.split(maxsplit=1) for line in Path("/proc/stat").read_text().splitlines())
            running.append(int(fields["procs_running"]) - 1)  # this one looks
    except (OSError, KeyError, ValueError):  # not Linux
        return False
    return statistics.median(running) + threads > (os.cpu_count() or 1)


def device_name(device: torch.device) -> str:
    """What a person calls the device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def keep_freed_memory() -> None:
    """Have this process keep the memory that it frees, for the next step. Does nothing but with glibc.

    By default large blocks go back to the system and come again page by page: on a CPU that takes a tenth
    of a ViT-B's step. The most that a process holds at a time does not change.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return
    for option, value in ((M_MMAP_THRESHOLD, 2**25), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**26)):
        mallopt(option, value)


def processor_name() -> str:
    """The processor, as its maker calls it."""
    file = Path("/proc/cpuinfo")
    if file.is_file():
        for line in file.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def about(device: torch.device) -> dict[str, Any]:
    """What measurements of speed depend on, besides what is measured."""
    return {
        "device": device_name(device),
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def free_bytes(device: torch.device) -> int:
    """Memory that could still be taken on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        free = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and (most := limit.read_text().strip()) != "max":
        free = min(free, int(most) - int(used.read_text()))
    return free


def peak_bytes(device: torch.device) -> int:
    """Most memory used so far: the device's where it has its own, else this process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would count what the parent had used before it started this process
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource  # not on every platform

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def fit_micro_batch(
    fabric: Fabric, module: nn.Module, forward: Callable[[], Any], count: int, batch_size: int
) -> int:
    """Images that a process takes at a time, of the ``batch_size`` that all take a step.

    Args:
        forward: runs ``module`` on ``count`` images, which shows how much autograd keeps for them.
    """
    weights = sum(p.numel() * p.element_size() for p in module.parameters())
    module.eval()  # the running statistics of batch norms are none of this trial's business
    with fabric.autocast():
        per_image = saved_bytes(module, forward) // count
    module.train()
    share = batch_size // fabric.world_size
    fitting = choose_micro_batch(share, per_image, 3 * weights, fabric.device)
    return max(fitting, min(2, share)) if has_batch_norm(module) else fitting


def choose_micro_batch(share: int, bytes_per_image: int, bytes_for_state: int, device: torch.device) -> int:
    """Images that one process takes at a time, of the ``share`` it has of each batch.

    Args:
        share: this process's images a step.
        bytes_per_image: activations kept for one image (see `saved_bytes`).
        bytes_for_state: gradients and optimiser state still to be allocated.
        device: where they must fit.
    """
    budget = MEMORY_SHARE * free_bytes(device) - bytes_for_state
    most = max(1, int(budget // max(bytes_per_image, 1)))
    if device.type == "cpu":
        most = min(most, CPU_MICRO_BATCH)
    parts = -(-share // min(most, share))
    return -(-share // parts)
