"""Learning rate as a function of the step: linear warm-up, then cosine or steps down."""

import math
from dataclasses import dataclass
from typing import Literal

from fastmim.errors import UsageError
from fastmim.train.optim import scaled_lr
from fastmim.train.stages import Leg, Plan

WARMUP_SHARE = 0.1


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate changes during a run (paper: table 11)."""

    name: Literal["cosine", "step"] = "cosine"
    """Cosine to --schedule.min-lr, or a tenth every --schedule.decay-epochs (the paper's for Swin-L)."""
    warmup_epochs: float | None = None
    """Epochs of linear warm-up. Default: the paper's 10 (fine-tuning: 5), but at most a tenth of the run."""
    decay_epochs: float = 30.0
    """Epochs after which the step schedule divides the learning rate by ten."""
    min_lr: float = 0.0
    """Learning rate at the end of the cosine."""

    def __post_init__(self) -> None:
        if self.warmup_epochs is not None and self.warmup_epochs < 0:
            raise UsageError(f"schedule.warmup_epochs = {self.warmup_epochs} must be 0 or more epochs")
        if self.decay_epochs <= 0:
            raise UsageError(f"schedule.decay_epochs = {self.decay_epochs} must be above 0 epochs")
        if self.min_lr < 0:
            raise UsageError(f"schedule.min_lr = {self.min_lr} must be 0 or more")


@dataclass(frozen=True)
class Schedule:
    """A schedule whose durations have been converted to steps of the run's first batch size.

    Where a later stage changes the batch, one of its steps counts as ``pace`` of the first stage's, and
    ``peak_lr`` follows the batch.
    """

    peak_lr: float
    total_steps: float
    warmup_steps: int
    decay_steps: float
    config: ScheduleConfig
    first_step: int = 0
    done: float = 0.0
    """Steps, as counted here, before the step ``first_step``."""
    pace: float = 1.0

    def lr(self, step: int) -> float:
        """Learning rate of the step number ``step``, counted from 0."""
        position = self.done + (step - self.first_step) * self.pace
        if position < self.warmup_steps:
            return self.peak_lr * (position + 1) / self.warmup_steps
        if self.config.name == "step":
            return self.peak_lr * float(0.1 ** (position // self.decay_steps))
        share = (position - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        low = min(self.config.min_lr, self.peak_lr)
        return low + (self.peak_lr - low) * (1 + math.cos(math.pi * min(share, 1.0))) / 2


def build_schedule(config: ScheduleConfig, base_lr: float, plan: Plan, leg: Leg) -> Schedule:
    """Convert epochs to steps (here and nowhere else for the learning rate).

    Args:
        base_lr: for a batch of 256 images.
        leg: the part of ``plan`` that the schedule is asked about.
    """
    batch = plan.legs[0].batch_size
    steps_per_epoch = plan.images / batch
    total_steps = plan.legs[-1].samples_before(plan.total_steps) / batch
    if config.warmup_epochs is None:
        warmup = min(10 * steps_per_epoch, WARMUP_SHARE * total_steps)
    else:
        warmup = config.warmup_epochs * steps_per_epoch
    return Schedule(
        scaled_lr(base_lr, leg.batch_size),
        total_steps,
        round(warmup),
        config.decay_epochs * steps_per_epoch,
        config,
        first_step=leg.first_step,
        done=leg.first_sample / batch,
        pace=leg.batch_size / batch,
    )
