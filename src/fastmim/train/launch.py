"""Devices and processes: one process, several started here, or those of torchrun and SLURM."""

import contextlib
import logging
import math
import multiprocessing
import os
import pickle
import select
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from fastmim.errors import FastmimError, Interrupted, RunError, StoppedError, UsageError
from fastmim.train.device import Precision, choose_precision, device_name, keep_freed_memory
from fastmim.train.signals import STOPPING, install, restore

SECONDS_TO_LOOK = 0.5  # between two looks at other processes
SECONDS_TO_END = 5.0  # that a process gets to heed a second signal; then it is killed
SECONDS_TO_STOP = 30.0  # that it gets for its step and a checkpoint, once whoever started it is gone
SECONDS_TO_TELL = 3.0  # by which a lost process's own error comes before that of those that it leaves
LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused")
AT_ONCE = "at once; what it had written is intact, and --resume-or-begin goes on"

T = TypeVar("T")


def build_fabric(accelerator: str, devices: int, num_nodes: int, precision: Precision) -> Fabric:
    """Lightning Fabric for these devices; under torchrun and SLURM, their numbers of processes hold.

    Raises:
        UsageError: there are no such devices here.
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
    """Whether torchrun or SLURM has started the processes already."""
    return TorchElasticEnvironment.detect() or (
        SLURMEnvironment.detect() and int(os.environ["SLURM_NTASKS"]) > 1
    )


def run_everywhere(
    accelerator: str, devices: int, num_nodes: int, precision: Precision, run: Callable[[Fabric], T]
) -> T:
    """Call ``run`` in a process a device: in this one where there is one, or where a launcher made them."""
    fabric = build_fabric(accelerator, devices, num_nodes, precision)
    if fabric.world_size > 1 and not started_by_launcher():
        result: T = launch_processes(fabric, run)
        return result
    fabric.launch()
    return as_one_of_many(run, fabric) if fabric.world_size > 1 else run(fabric)


def teller(quiet: bool) -> Callable[[str], None]:
    """What prints a line at once, on the first of the processes that a launcher has started."""
    if quiet or os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) != "0":
        return lambda _: None
    return partial(print, flush=True)


def precision_of(fabric: Fabric) -> Precision:
    """As `build_fabric` takes it."""
    return cast(Precision, fabric._precision.precision)


def hardware(fabric: Fabric) -> dict[str, Any]:
    """What a run's seconds are seconds of."""
    return {
        "device": device_name(fabric.device),
        "processes": fabric.world_size,
        "threads": torch.get_num_threads(),
    }


def launch_processes(fabric: Fabric, run: Callable[[Fabric], Any]) -> Any:
    """Start a process a device, call ``run(fabric)`` in each, and return what the first one returns.

    Raises:
        RunError, UsageError: what a process raised, as if it had been raised here; or one was killed.
    """
    with tempfile.TemporaryDirectory(prefix="fastmim-") as folder, _signals_to_processes(fabric) as signals:
        # In a file, since a process that dies before it has read a long argument from a pipe hangs this one.
        parcel = Path(folder) / "run"
        parcel.write_bytes(pickle.dumps(run))
        try:
            with _level("torch.multiprocessing.spawn", logging.ERROR):  # it tells whom it ends
                return fabric.launch(partial(_run_parcel, parcel))
        except ProcessExitedException as error:
            by_signal = signal.Signals[error.signal_name].value if error.signal_name else None
            number = signals[0] if signals else by_signal
            if number is not None and number in STOPPING:
                raise StoppedError(number, AT_ONCE) from error
            how = f"was killed by {error.signal_name}" if by_signal else f"ended with code {error.exit_code}"
            raise RunError(
                f"process {error.error_index + 1} of {fabric.world_size} {how}, perhaps for want of memory; "
                "go on with --resume-or-begin"
            ) from error
        except ProcessRaisedException as error:
            if signals:
                raise StoppedError(signals[0], AT_ONCE) from error
            last = str(error).strip().splitlines()[-1]
            for kind in (UsageError, RunError):
                marker = f"{kind.__module__}.{kind.__name__}: "
                if last.startswith(marker):
                    raise kind(last.removeprefix(marker)) from error
            name = f"process {error.error_index + 1} of {fabric.world_size}"
            raise RunError(f"{name}: unexpected {last} (--debug shows where)") from error


def _run_parcel(parcel: Path, fabric: Fabric) -> Any:
    """What `launch_processes` has packed, in a process that it started."""
    return as_one_of_many(lambda fabric: pickle.loads(parcel.read_bytes())(fabric), fabric)


def as_one_of_many(run: Callable[[Fabric], T], fabric: Fabric) -> T:
    """Call ``run(fabric)`` in one of several processes, which must neither outlive nor hang the others."""
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    try:
        return run(fabric)
    except KeyboardInterrupt as error:
        # The usual end waits for the others, which may wait for this one.
        _end(128 + (error.number if isinstance(error, Interrupted) else signal.SIGINT))
    except FastmimError as error:
        kind = UsageError if isinstance(error, UsageError) else RunError
        raise kind(" ".join(str(error).split())) from error
    except RuntimeError as error:
        if not any(word in str(error) for word in LOST_PEER):
            raise
        time.sleep(SECONDS_TO_TELL)  # whatever ended the other process is told first
        name = f"process {fabric.global_rank + 1} of {fabric.world_size}"
        raise RunError(f"{name} has lost the others, of which one has ended; go on with --resume") from error


def _end(code: int) -> NoReturn:
    """End this process at once, and those that it has started."""
    for child in multiprocessing.active_children():
        child.kill()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)


def _end_with_parent(parent: int) -> None:
    """Ask this process to stop once the one that started it is gone, and then make it."""
    while os.getppid() == parent:
        time.sleep(SECONDS_TO_LOOK)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SECONDS_TO_STOP)
    _end(128 + signal.SIGTERM)


@contextlib.contextmanager
def _signals_to_processes(fabric: Fabric) -> Iterator[list[int]]:
    """Pass the signals that stop a run on to the processes that are started in the block; gives them.

    The first one is passed on as SIGTERM: it ends a process that is only starting, and others write a
    checkpoint. At the second one, SIGTERM comes again, and those that cannot heed it are killed. A thread
    does so, since this one waits for the processes. They are started with the other signals blocked: Ctrl-C
    at a terminal, which reaches them all, must not end some of them.
    """
    signals: list[int] = []
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "pthread_sigmask"):
        yield signals
        return
    inlet, outlet = os.pipe()
    os.set_blocking(outlet, False)
    thread = threading.Thread(target=_pass_on, args=(inlet, fabric.world_size, signals), daemon=True)
    thread.start()
    before = install(lambda *_: None)
    wakeup = signal.set_wakeup_fd(outlet, warn_on_full_buffer=False)
    resource_tracker.ensure_running()  # which would unblock them
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, set(STOPPING) - {signal.SIGTERM})
    try:
        yield signals
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.set_wakeup_fd(wakeup)
        restore(before)
        os.close(outlet)
        thread.join()
        os.close(inlet)


def _pass_on(inlet: int, processes: int, signals: list[int]) -> None:
    """Note the signals that come from ``inlet``, and tell the processes, until its other end is closed."""
    children: set[BaseProcess] = set()
    killing = math.inf
    while True:
        if select.select([inlet], [], [], SECONDS_TO_LOOK if signals else None)[0]:
            numbers = os.read(inlet, 64)
            if not numbers:
                return
            signals += [number for number in numbers if number in STOPPING]
            if len(signals) > 1 and killing == math.inf:
                _send(children, signal.SIGTERM)
                killing = time.monotonic() + SECONDS_TO_END
        if signals and len(children) < processes:
            new = set(multiprocessing.active_children()) - children
            children |= new
            for number in dict.fromkeys([signals[0], signal.SIGTERM]):  # the first one gives the exit code
                _send(new, number)
        if time.monotonic() > killing:
            _send(children, signal.SIGKILL)


def _send(processes: Iterable[BaseProcess], number: int) -> None:
    for process in processes:
        with contextlib.suppress(OSError):
            if process.pid is not None:
                os.kill(process.pid, number)


@contextlib.contextmanager
def deterministic_kernels(wanted: bool) -> Iterator[None]:
    """Within the block, the same numbers in give the same bits out, where kernels for that exist."""
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
    """Hide warnings of libraries that tell a user nothing they could act on."""
    with _level("lightning_fabric.utilities.rank_zero", logging.WARNING), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _level(name: str, level: int) -> Iterator[None]:
    """Within the block, the logger ``name`` lets only records of that level and above pass."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
