"""Logs of a run: metrics.jsonl, TensorBoard events, and a progress bar or lines on the terminal."""

import contextlib
import json
import math
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard.writer import SummaryWriter

from fastmim.errors import RunError
from fastmim.train.run_files import METRICS
from fastmim.train.stages import TrainingPlan

ALWAYS_LOGGED = {"step", "epoch", "loss", "seconds"}


class MetricsFile:
    """Appends one JSON object per line, and reports its length, where a resumed run cuts the file."""

    def __init__(self, path: Path, keep_bytes: int) -> None:
        self._path = path
        try:
            self._file = path.open("ab")
            self._file.truncate(min(keep_bytes, path.stat().st_size))
            self._end_line()
        except OSError as error:
            raise RunError(f"cannot write {path}: {error.strerror}") from error

    def _end_line(self) -> None:
        """Start a new line if the last one is incomplete."""
        size = self._path.stat().st_size
        if size:
            with self._path.open("rb") as file:
                file.seek(size - 1)
                torn = file.read(1) != b"\n"
            if torn:
                self._file.write(b"\n")
                self._file.flush()

    def write(self, values: dict[str, Any]) -> None:
        # JSON has no NaN; a loss that is not a number is written as null.
        plain = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }
        try:
            self._file.write(json.dumps(plain).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise RunError(f"cannot write {self._path}: {error.strerror}") from error

    def size(self) -> int:
        """Flush the file to disk and return its length in bytes."""
        try:
            os.fsync(self._file.fileno())
            return self._path.stat().st_size
        except OSError as error:
            raise RunError(f"cannot write {self._path}: {error.strerror}") from error

    def close(self) -> None:
        with contextlib.suppress(OSError):  # flushes again a line that `write` failed to write
            self._file.close()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Read a run's metrics.jsonl, without lines that a crash or damage has spoilt."""
    try:
        content = (run / METRICS).read_bytes()
    except OSError:
        return []
    return [line for line in map(_read_line, content.split(b"\n")) if line is not None]


def _read_line(text: bytes) -> dict[str, Any] | None:
    """Parse the numbers of a log step; None if the line is not one."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):  # includes invalid UTF-8
        return None
    if not isinstance(line, dict) or not line.keys() >= ALWAYS_LOGGED:
        return None
    numbers = (value for name, value in line.items() if name != "image_size")
    return line if all(value is None or isinstance(value, int | float) for value in numbers) else None


class Display:
    """A progress bar on a terminal, plain lines elsewhere, nothing if ``quiet``."""

    def __init__(self, plan: TrainingPlan, quiet: bool, stream: TextIO | None = None) -> None:
        self._console = Console(file=stream or sys.stdout, highlight=False, quiet=quiet, soft_wrap=True)
        self._plan = plan
        self._bar: Progress | None = None
        if self._console.is_terminal and not quiet:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.percentage:3.0f}%"),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[numbers]}"),
                console=self._console,
                expand=True,
            )
            self._task = self._bar.add_task("epoch 0", total=plan.total_steps, numbers="")

    def __enter__(self) -> "Display":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, message: str) -> None:
        """Print a line that stays, above the progress bar."""
        self._console.print(message, markup=False)

    def update(self, step: int, values: dict[str, Any]) -> None:
        """Show the numbers of a log step."""
        epoch = f"epoch {values['epoch']:.4g}/{self._plan.total_epochs:.4g}"
        if len(self._plan.stages) > 1:
            height, width = values["image_size"]
            size = f"{width}" if height == width else f"{height}x{width}"
            epoch = f"stage {values['stage']}/{len(self._plan.stages)} {size}px {epoch}"
        loss = f"loss {values['loss']:.4f}"
        speed = f"{values['images_per_second']:.0f} img/s wait {values['data_wait']:.0%}"
        if self._bar is not None:  # fits in 80 columns
            self._bar.update(self._task, completed=step, description=epoch, numbers=f"{loss} {speed}")
        else:
            lr, left = f"lr {values['lr']:.1e}", f"ETA {_clock(values['seconds_left'])}"
            self.say(f"step {step}/{self._plan.total_steps} {epoch} {loss} {lr} {speed} {left}")


def _clock(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


class RunLog:
    """Writes the numbers of a log step to metrics.jsonl, TensorBoard and the display."""

    def __init__(self, run: Path, display: Display, keep_bytes: int, first_step: int) -> None:
        self.display = display
        self._metrics = MetricsFile(run / METRICS, keep_bytes)
        # TensorBoard hides events of steps that a resumed run repeats.
        self._events = SummaryWriter(str(run), purge_step=first_step or None)

    def log(self, step: int, values: dict[str, Any]) -> None:
        self._metrics.write(values)
        for name, value in values.items():
            if name not in ("step", "seconds_left") and isinstance(value, int | float):
                self._events.add_scalar(name, value, step)
        self.display.update(step, values)

    def size(self) -> int:
        return self._metrics.size()

    def close(self) -> None:
        self._metrics.close()
        self._events.close()
