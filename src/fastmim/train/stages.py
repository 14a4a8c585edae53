"""Stages of a run (FastMIM-P: growing image size) and the plan of its steps (paper: section 4.2).

A run without stages is a plan of one stage. Stage lengths are converted to steps here and nowhere else.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from fastmim.errors import UsageError
from fastmim.system.size import Size

GRAMMAR = "SIZExEPOCHSe or SIZExSTEPSs, with @BATCH or @BATCH/MICRO where they change: 128x200e,160x100e@1024"
_STAGE = re.compile(
    r"(?:(?P<height>\d+):)?(?P<width>\d+)x(?P<count>\d+(?:\.\d+)?)(?P<unit>[es])"
    r"(?:@(?P<batch>\d+)?(?:/(?P<micro>\d+))?)?"
)


@dataclass(frozen=True)
class StageConfig:
    """One stage of a run: image size, length, and optionally its own batch size."""

    image_size: int | tuple[int, int]
    """Side, or height and width, in pixels."""
    epochs: float | None = None
    """Passes over the data."""
    steps: int | None = None
    """Length in optimiser steps, instead of epochs."""
    batch_size: int | None = None
    """Images per step. Default: the run's."""
    micro_batch: int | None = None
    """Images per device at a time. Default: the run's, or as many as fit in memory."""

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise UsageError(f"stages: {asdict(self)} needs either epochs or steps")
        numbers = {**asdict(self), "image_size": min(self.size)}
        for name, value in numbers.items():
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"stages: {name} = {value} must be above 0 and finite")

    @property
    def size(self) -> Size:
        """(H, W) in pixels."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    def __str__(self) -> str:
        height, width = self.size
        size = f"{width}" if height == width else f"{height}:{width}"
        length = f"{self.epochs:g}e" if self.epochs is not None else f"{self.steps}s"
        micro = f"/{self.micro_batch}" if self.micro_batch else ""
        batch = f"@{self.batch_size or ''}{micro}" if self.batch_size or micro else ""
        return f"{size}x{length}{batch}"


def parse_stages(text: str) -> tuple[StageConfig, ...]:
    """Parse ``128x200e,160x100s@1024/64``: size, epochs or steps, then batch and micro-batch if they change.

    A size that is not square is written HEIGHT:WIDTH. Raises UsageError.
    """
    stages = []
    for part in (part.strip() for part in text.split(",") if text.strip()):
        match = _STAGE.fullmatch(part)
        if match is None or (match["unit"] == "s" and "." in match["count"]):
            raise UsageError(f"stages: {part!r} is not {GRAMMAR}")
        width = int(match["width"])
        stages.append(
            StageConfig(
                (int(match["height"]), width) if match["height"] else width,
                epochs=float(match["count"]) if match["unit"] == "e" else None,
                steps=int(match["count"]) if match["unit"] == "s" else None,
                batch_size=int(match["batch"]) if match["batch"] else None,
                micro_batch=int(match["micro"]) if match["micro"] else None,
            )
        )
    return tuple(stages)


@dataclass(frozen=True)
class Stage:
    """A stage in steps: from ``first_step`` up to, but not including, ``last_step``."""

    number: int
    """Index, from 0."""
    image_size: Size
    batch_size: int
    micro_batch: int | None
    first_step: int
    last_step: int
    first_sample: int
    """Number of images seen in earlier stages."""

    def samples_before(self, step: int) -> int:
        """Return the number of images seen before a step of this stage."""
        return self.first_sample + (step - self.first_step) * self.batch_size


@dataclass(frozen=True)
class TrainingPlan:
    """The stages of a run, in order."""

    stages: tuple[Stage, ...]
    images: int
    """Training images per epoch."""

    @property
    def total_steps(self) -> int:
        return self.stages[-1].last_step

    @property
    def total_epochs(self) -> float:
        return self.stages[-1].samples_before(self.total_steps) / self.images

    def evaluation_steps(self, evaluations: int, log_every_steps: int) -> frozenset[int]:
        """Return the steps followed by an evaluation: evenly spaced, and the end of each stage."""
        count = max(1, min(evaluations, self.total_steps // log_every_steps))
        evenly = {math.ceil(self.total_steps * i / count) for i in range(1, count + 1)}
        return frozenset(evenly | {stage.last_step for stage in self.stages})


def build_plan(
    stages: Sequence[StageConfig], images: int, batch_size: int, micro_batch: int | None
) -> TrainingPlan:
    """Convert stage lengths to steps, rounded up to whole steps.

    Args:
        images: number of training images.
        batch_size, micro_batch: defaults for stages that set none.
    """
    planned: list[Stage] = []
    step = sample = 0
    for number, stage in enumerate(stages):
        batch = stage.batch_size or batch_size
        steps = stage.steps or max(1, math.ceil((stage.epochs or 0) * (images / batch)))
        micro = stage.micro_batch or micro_batch
        planned.append(Stage(number, stage.size, batch, micro, step, step + steps, sample))
        step, sample = step + steps, sample + steps * batch
    return TrainingPlan(tuple(planned), images)
