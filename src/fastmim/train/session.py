"""Open a run's progress display, metrics log and signal handlers."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fastmim.system.files import write_atomically
from fastmim.train.checkpoint import remove_leftovers
from fastmim.train.distributed import deterministic_kernels, started_by_launcher
from fastmim.train.logs import Display, RunLog
from fastmim.train.resuming import Checkpoint, adopt
from fastmim.train.run_files import CONFIG
from fastmim.train.signals import StopRequest
from fastmim.train.stages import TrainingPlan


class Session(NamedTuple):
    display: Display
    log: RunLog | None
    """On the first process."""
    stop: StopRequest


@contextlib.contextmanager
def opened(
    run: Path,
    plan: TrainingPlan,
    config_text: str,
    checkpoint: Checkpoint | None,
    first: bool,
    quiet: bool,
    deterministic: bool,
) -> Iterator[Session]:
    """Open a run in ``run``, new or from a checkpoint on.

    Args:
        config_text: what a new run writes to config.yaml.
        first: this process is the one that writes.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(deterministic_kernels(deterministic))
        display = stack.enter_context(Display(plan, quiet=quiet or not first))
        log = None
        if first:
            remove_leftovers(run)
            state: dict[str, Any] = {"progress": {"step": 0}, "metrics_bytes": 0}
            if checkpoint is None:
                write_atomically(run / CONFIG, lambda file: file.write(config_text.encode()))
            else:
                state = checkpoint.state
                adopt(run, checkpoint)
            if checkpoint is not None and checkpoint.note:
                display.say(checkpoint.note)
            log = RunLog(run, display, state["metrics_bytes"], state["progress"]["step"])
            stack.callback(log.close)
        stop = StopRequest(started_by_launcher(), says=first and not quiet)
        yield Session(display, log, stack.enter_context(stop))
