"""Describe the machine: processor, device, memory, and whether it is busy."""

import ctypes
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # from malloc.h
LOOKS, SECONDS_TO_LOOK = 5, 0.05


def others_compute(threads: int) -> bool:
    """Return whether other processes leave fewer than ``threads`` processors free at the moment."""
    running = []
    try:
        for _ in range(LOOKS):
            time.sleep(SECONDS_TO_LOOK)
            fields = dict(line.split(maxsplit=1) for line in Path("/proc/stat").read_text().splitlines())
            running.append(int(fields["procs_running"]) - 1)  # without this process
    except (OSError, KeyError, ValueError):  # not Linux
        return False
    return statistics.median(running) + threads > (os.cpu_count() or 1)


def device_name(device: torch.device) -> str:
    """Return the model of a CUDA device, or the type of another device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def keep_freed_memory() -> None:
    """Make this process keep the memory that it frees, for the next step. Only works with glibc.

    By default, large blocks are returned to the system and mapped again page by page: on a CPU, this takes a
    tenth of a ViT-B's step. Peak memory does not change.
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
    """Return the processor's model name."""
    file = Path("/proc/cpuinfo")
    if file.is_file():
        for line in file.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def device_fingerprint(device: torch.device) -> dict[str, Any]:
    """Return the hardware and software that measurements of speed depend on."""
    return {
        "device": device_name(device),
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def free_bytes(device: torch.device) -> int:
    """Return the memory that is available on the device, in bytes."""
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
    """Return peak memory in bytes: of the device if it has its own memory, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would include the parent's memory from before it started this process
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource  # not on every platform

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


MOST_WORKERS = 8


def available_cpus() -> int:
    """Return the number of CPUs this process may use: its affinity, limited by its cgroup's quota."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.is_file():
        allowed, period = quota.read_text().split()[:2]
        if allowed != "max":
            cpus = min(cpus, max(1, int(allowed) // int(period)))
    return cpus


def loader_workers(wanted: int | None, processes: int) -> int:
    """Return the loader workers for each of ``processes`` processes: ``wanted``, or as many as fit."""
    if wanted is not None:
        return wanted
    return max(1, min(MOST_WORKERS, available_cpus() // max(1, processes) - 1))
