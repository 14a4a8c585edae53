"""Devices and processes: a single process, several started here, or those of torchrun or SLURM."""

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, TypeVar, cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from fastmim.errors import UsageError
from fastmim.system.hardware import device_name, keep_freed_memory
from fastmim.train.device import choose_precision
from fastmim.train.processes import as_one_of_many, launch_processes, logger_level
from fastmim.train.settings import Precision

T = TypeVar("T")


def build_fabric(accelerator: str, devices: int, num_nodes: int, precision: Precision) -> Fabric:
    """Build Lightning Fabric for these devices; torchrun and SLURM override the number of processes.

    Raises:
        UsageError: the devices are not available.
    """
    if accelerator == "auto":
        accelerator = (
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    if accelerator == "cpu":
        keep_freed_memory()
    if precision == "auto":
        precision = choose_precision(torch.device(accelerator))
    strategy = "auto"
    if TorchElasticEnvironment.detect():
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        num_nodes = int(os.environ["WORLD_SIZE"]) // devices
        strategy = "ddp" if devices * num_nodes > 1 else "auto"
    elif SLURMEnvironment.detect() and int(os.environ["SLURM_NTASKS"]) > 1:
        num_nodes = int(os.environ.get("SLURM_NNODES", num_nodes))
        devices = int(os.environ["SLURM_NTASKS"]) // num_nodes
        strategy = "ddp"
    elif num_nodes > 1:
        raise UsageError(f"num_nodes = {num_nodes}: start one process a device with torchrun or SLURM")
    elif devices > 1:
        strategy = "ddp_spawn"
    if accelerator == "cuda" and devices > torch.cuda.device_count():
        raise UsageError(f"devices = {devices}: this machine has {torch.cuda.device_count()} CUDA devices")
    try:
        with quiet_warnings():
            return Fabric(
                accelerator=accelerator,
                devices=devices,
                num_nodes=num_nodes,
                precision=precision,
                strategy=strategy,
            )
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"accelerator = {accelerator}: {' '.join(str(error).split())}") from error


def started_by_launcher() -> bool:
    """Return whether torchrun or SLURM has started the processes."""
    return TorchElasticEnvironment.detect() or (
        SLURMEnvironment.detect() and int(os.environ["SLURM_NTASKS"]) > 1
    )


def starts_processes(devices: int, num_nodes: int) -> bool:
    """Return whether a run on this many devices needs processes that are started here."""
    return devices * num_nodes > 1 and not started_by_launcher()


def run_everywhere(
    accelerator: str, devices: int, num_nodes: int, precision: Precision, run: Callable[[Fabric], T]
) -> T:
    """Call ``run`` in one process per device; only several devices without a launcher need new processes."""
    fabric = build_fabric(accelerator, devices, num_nodes, precision)
    if fabric.world_size > 1 and not started_by_launcher():
        result: T = launch_processes(fabric, run)
        return result
    fabric.launch()
    return as_one_of_many(run, fabric) if started_by_launcher() else run(fabric)


def teller(quiet: bool) -> Callable[[str], None]:
    """Return a function that prints a line at once, on the first process of a launcher."""
    if quiet or os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) != "0":
        return lambda _: None
    return partial(print, flush=True)


def precision_of(fabric: Fabric) -> Literal["bf16-mixed", "32-true"]:
    """Return the precision as `build_fabric` takes it."""
    return cast("Literal['bf16-mixed', '32-true']", fabric._precision.precision)


def hardware(fabric: Fabric) -> dict[str, Any]:
    """Return the hardware that a run's times were measured on."""
    return {
        "device": device_name(fabric.device),
        "processes": fabric.world_size,
        "threads": torch.get_num_threads(),
    }


@contextlib.contextmanager
def deterministic_kernels(wanted: bool) -> Iterator[None]:
    """Use deterministic kernels within the block, where they exist: equal inputs give equal bits."""
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


@contextlib.contextmanager
def quiet_warnings() -> Iterator[None]:
    """Hide library warnings that a user cannot act on."""
    with logger_level("lightning_fabric.utilities.rank_zero", logging.WARNING), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
