"""Several processes of one run, started here or by a launcher: none outlives or hangs the others."""

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
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from lightning_fabric import Fabric
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from fastmim.errors import FastmimError, Interrupted, RunError, StoppedError, UsageError
from fastmim.train.signals import STOPPING, install, restore, write

SECONDS_TO_LOOK = 0.5  # between checks of other processes
SECONDS_TO_END = 5.0  # for a process to react to a second signal; then it is killed
SECONDS_TO_STOP = 30.0  # for its step and a checkpoint, after its parent has ended
SECONDS_TO_TELL = 3.0  # delay of the other processes' errors, so that a lost process's own comes first
LOST_PEER = ("Connection closed", "Connection reset", "Broken pipe", "Connection refused", "ncclRemoteError")
AT_ONCE = "at once; the files written so far are intact, and --resume-or-begin resumes the run"

T = TypeVar("T")


def launch_processes(fabric: Fabric, run: Callable[[Fabric], Any]) -> Any:
    """Start one process per device, call ``run(fabric)`` in each, and return the first one's result.

    Raises:
        RunError, UsageError: as raised in a process; RunError also if a process was killed.
    """
    with tempfile.TemporaryDirectory(prefix="fastmim-") as folder, _signals_to_processes(fabric) as signals:
        # In a file: a process that dies before it has read a long argument from a pipe would hang this one.
        parcel = Path(folder) / "run"
        parcel.write_bytes(pickle.dumps(run))
        try:
            with logger_level("torch.multiprocessing.spawn", logging.ERROR):  # it logs which it ends
                return fabric.launch(partial(_run_parcel, parcel))
        except ProcessExitedException as error:
            by_signal = signal.Signals[error.signal_name].value if error.signal_name else None
            number = signals[0] if signals else by_signal
            if number is not None and number in STOPPING:
                raise StoppedError(number, AT_ONCE) from error
            how = f"was killed by {error.signal_name}" if by_signal else f"ended with code {error.exit_code}"
            raise RunError(
                f"process {error.error_index + 1} of {fabric.world_size} {how}, perhaps for lack of memory; "
                "resume with --resume-or-begin"
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
    """Unpack and run the function of `launch_processes`, in a process that it started."""
    return as_one_of_many(lambda fabric: pickle.loads(parcel.read_bytes())(fabric), fabric)  # noqa: S301 - the parent's


def as_one_of_many(run: Callable[[Fabric], T], fabric: Fabric) -> T:
    """Call ``run(fabric)`` in one of several processes, which must neither outlive nor hang the others."""
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    try:
        return run(fabric)
    except KeyboardInterrupt as error:
        if multiprocessing.parent_process() is None and fabric.is_global_zero:  # no other process reports it
            write(f"fastmim: {error}\n".encode())
        # A normal exit would wait for the others, which may be waiting for this one.
        _end(128 + (error.number if isinstance(error, Interrupted) else signal.SIGINT))
    except FastmimError as error:
        kind = UsageError if isinstance(error, UsageError) else RunError
        raise kind(" ".join(str(error).split())) from error
    except RuntimeError as error:
        if not any(word in str(error) for word in LOST_PEER):
            raise
        time.sleep(SECONDS_TO_TELL)  # the other process's own error comes first
        name = f"process {fabric.global_rank + 1} of {fabric.world_size}"
        raise RunError(
            f"{name} has lost the other processes, one of which has ended; resume with --resume"
        ) from error


def _end(code: int) -> NoReturn:
    """End this process and its children at once."""
    for child in multiprocessing.active_children():
        child.kill()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)


def _end_with_parent(parent: int) -> None:
    """When the parent process has ended, ask this process to stop, and later end it."""
    while os.getppid() == parent:
        time.sleep(SECONDS_TO_LOOK)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SECONDS_TO_STOP)
    _end(128 + signal.SIGTERM)


@contextlib.contextmanager
def _signals_to_processes(fabric: Fabric) -> Iterator[list[int]]:
    """Forward the signals that stop a run to processes started in the block; yield the signals.

    The first signal is forwarded and followed by SIGTERM: this ends a process that is still starting, and the
    others write a checkpoint. At the second signal, SIGTERM is sent again, and processes that do not react
    are killed. A thread does this, since the main thread waits for the processes. The processes start with
    the other signals blocked: Ctrl-C at a terminal reaches all of them, and must not end only some.
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
    resource_tracker.ensure_running()  # its start would unblock signals
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
    """Record signals from ``inlet`` and forward them to the processes, until its other end is closed."""
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
            for number in dict.fromkeys([signals[0], signal.SIGTERM]):  # the first one sets the exit code
                _send(new, number)
        if time.monotonic() > killing:
            _send(children, signal.SIGKILL)


def _send(processes: Iterable[BaseProcess], number: int) -> None:
    for process in processes:
        with contextlib.suppress(OSError):
            if process.pid is not None:
                os.kill(process.pid, number)


@contextlib.contextmanager
def logger_level(name: str, level: int) -> Iterator[None]:
    """Set the level of the logger ``name`` within the block."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
