"""Learning rate schedules: linear warm-up, then cosine, linear or step decay."""

import math
from dataclasses import dataclass

from fastmim.train.optim import scaled_lr
from fastmim.train.settings import ScheduleConfig
from fastmim.train.stages import Stage, TrainingPlan

WARMUP_SHARE = 0.1


@dataclass(frozen=True)
class Schedule:
    """A schedule whose durations are converted to steps of the run's first batch size.

    If a later stage changes the batch size, each of its steps counts as ``pace`` steps of the first stage,
    and ``peak_lr`` is scaled with the batch size.
    """

    peak_lr: float
    total_steps: float
    warmup_steps: int
    decay_steps: float
    config: ScheduleConfig
    first_step: int = 0
    done: float = 0.0
    """Steps of the first batch size before ``first_step``."""
    pace: float = 1.0
    steps_per_epoch: float = 1.0
    """In steps of the first batch size."""

    def lr(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        position = self.done + (step - self.first_step) * self.pace
        if position < self.warmup_steps:
            return self.peak_lr * (position + 1) / self.warmup_steps
        if self.config.name == "step":
            if self.config.milestones:
                passed = sum(position >= epoch * self.steps_per_epoch for epoch in self.config.milestones)
                return self.peak_lr * float(0.1**passed)
            return self.peak_lr * float(0.1 ** (position // self.decay_steps))
        share = (position - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        low = min(self.config.min_lr, self.peak_lr)
        if self.config.name == "linear":
            return low + (self.peak_lr - low) * (1 - min(share, 1.0))
        return low + (self.peak_lr - low) * (1 + math.cos(math.pi * min(share, 1.0))) / 2


def build_schedule(config: ScheduleConfig, base_lr: float, plan: TrainingPlan, stage: Stage) -> Schedule:
    """Convert epochs to steps (here and nowhere else for the learning rate).

    Args:
        base_lr: learning rate for a batch of 256 images.
        stage: the stage of ``plan`` that the schedule is for.
    """
    batch = plan.stages[0].batch_size
    steps_per_epoch = plan.images / batch
    total_steps = plan.stages[-1].samples_before(plan.total_steps) / batch
    if config.warmup_steps is not None:
        warmup = float(config.warmup_steps)
    elif config.warmup_epochs is None:
        warmup = min(10 * steps_per_epoch, WARMUP_SHARE * total_steps)
    else:
        warmup = config.warmup_epochs * steps_per_epoch
    return Schedule(
        scaled_lr(base_lr, stage.batch_size),
        total_steps,
        round(warmup),
        config.decay_epochs * steps_per_epoch,
        config,
        first_step=stage.first_step,
        done=stage.first_sample / batch,
        pace=stage.batch_size / batch,
        steps_per_epoch=steps_per_epoch,
    )
