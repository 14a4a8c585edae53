"""Open a run: its settings, progress display, metrics log and signal handlers."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lightning_fabric import Fabric

from fastmim.system.files import write_atomically
from fastmim.train.checkpoint_folder import ResumePoint, adopt, remove_leftovers
from fastmim.train.distributed import deterministic_kernels, started_by_launcher
from fastmim.train.kernels import KernelConfig
from fastmim.train.logs import Display, RunLog
from fastmim.train.optim import OptimConfig
from fastmim.train.run_dir import CONFIG, StartMode
from fastmim.train.schedules import ScheduleConfig
from fastmim.train.signals import StopRequest
from fastmim.train.stages import Plan


@dataclass(frozen=True)
class LoopConfig:
    """When the loop logs, saves and measures."""

    seed: int
    log_every_steps: int
    checkpoint_every_steps: int | None
    checkpoint_every_minutes: float
    keep_checkpoints: int
    evaluations: int
    """How often at most, evenly over the run, the task is measured."""


@dataclass(frozen=True)
class RunSettings:
    """What the engine heeds of a run's configuration."""

    out: Path
    """The run's folder."""
    config_text: str
    """What a new run writes to config.yaml."""
    resume_flags: str
    """The flags that resume the run, for the message of a stopped one."""
    start: StartMode
    loop: LoopConfig
    optim: OptimConfig
    schedule: ScheduleConfig
    kernels: KernelConfig
    deterministic: bool


@dataclass(frozen=True)
class Session:
    """A run that is open: what is the same in all of its stages."""

    fabric: Fabric
    settings: RunSettings
    plan: Plan
    identity: dict[str, str]
    """Digests that go into each checkpoint."""
    display: Display
    log: RunLog | None
    """On the first process."""
    stop: StopRequest

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.settings.out

    def say(self, line: str) -> None:
        """Show a line that stays, on the first process."""
        self.display.say(line)


@contextlib.contextmanager
def open_session(
    fabric: Fabric, settings: RunSettings, plan: Plan, identity: dict[str, str], point: ResumePoint | None
) -> Iterator[Session]:
    """Open a run in its folder, new or from a checkpoint on.

    Every process calls this; the first one writes.
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
