"""Open a run: its settings, progress display, metrics log and signal handlers."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lightning_fabric import Fabric

from fastmim.errors import UsageError
from fastmim.system.files import write_atomically
from fastmim.train.checkpoint import read_checkpoint
from fastmim.train.checkpoint_folder import ResumePoint, adopt, newest_checkpoint, remove_leftovers
from fastmim.train.distributed import deterministic_kernels, precision_of, started_by_launcher
from fastmim.train.logs import Display, RunLog
from fastmim.train.run_dir import goes_on, lock_run_dir, prepare_run_dir
from fastmim.train.run_files import CONFIG
from fastmim.train.settings import RunSettings, StartMode
from fastmim.train.signals import StopRequest
from fastmim.train.stages import TrainingPlan


@dataclass(frozen=True)
class Session:
    """An open run: everything that its stages share."""

    fabric: Fabric
    settings: RunSettings
    plan: TrainingPlan
    identity: dict[str, str]
    """Digests stored in each checkpoint."""
    display: Display
    log: RunLog | None
    """Metrics log of the first process; None in the others."""
    stop: StopRequest

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.settings.out

    def say(self, line: str) -> None:
        """Print a line above the progress bar, on the first process."""
        self.display.say(line)


@contextlib.contextmanager
def open_run_dir(
    fabric: Fabric, run: Path, files: tuple[str, ...], start: StartMode
) -> Iterator[ResumePoint | None]:
    """Lock ``run`` and prepare it; yield the point to resume from, or None for a new run.

    Every process of a run calls this; the first one holds the lock.

    Raises:
        UsageError: as for `lock_run_dir` and `prepare_run_dir`, or another process has started a run.
        RunError: no checkpoint of the run is intact.
    """
    with lock_run_dir(run) if fabric.is_global_zero else contextlib.nullcontext():
        point = None
        if fabric.is_global_zero:
            prepare_run_dir(run, files, start.resume, start.overwrite)
            point = newest_checkpoint(run) if goes_on(run, start.resume) else None
        file = fabric.broadcast(point.file if point else None)
        if point is None and file is not None:
            point = ResumePoint(read_checkpoint(file), file, "")
        if point is not None and point.checkpoint.choices.precision != precision_of(fabric):
            raise UsageError(f"out: another process has started a run in {run}: start again to resume it")
        yield point


@contextlib.contextmanager
def open_session(
    fabric: Fabric,
    settings: RunSettings,
    plan: TrainingPlan,
    identity: dict[str, str],
    point: ResumePoint | None,
) -> Iterator[Session]:
    """Open a run in its folder, from the beginning or from a checkpoint.

    Every process calls this; only the first one writes.
    """
    run, first = settings.out, fabric.is_global_zero
    quiet = settings.start.quiet or not first
    with contextlib.ExitStack() as stack:
        stack.enter_context(deterministic_kernels(settings.deterministic))
        display = stack.enter_context(Display(plan, quiet=quiet))
        log = None
        if first:
            remove_leftovers(run)
            if point is None:
                text = settings.config_text.encode()
                write_atomically(run / CONFIG, lambda file: file.write(text))
                log = RunLog(run, display, keep_bytes=0, first_step=0)
            else:
                adopt(run, point)
                if point.note:
                    display.say(point.note)
                checkpoint = point.checkpoint
                log = RunLog(run, display, checkpoint.metrics_bytes, checkpoint.progress.step)
            stack.callback(log.close)
        stop = stack.enter_context(StopRequest(started_by_launcher(), says=not quiet))
        yield Session(fabric, settings, plan, identity, display, log, stop)
