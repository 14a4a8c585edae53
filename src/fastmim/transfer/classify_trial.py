"""What is found out before a fine-tuning run by trying a few made images: fast kernels, and how many fit."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from lightning_fabric import Fabric

from fastmim.config import FinetuneConfig
from fastmim.errors import UsageError
from fastmim.train.device import fit_micro_batch
from fastmim.train.kernels import Kernels, settle_kernels
from fastmim.train.stages import Plan
from fastmim.transfer.classifier import Learner, Start, Step

MOST_IMAGES = 64
FITTED_BY = 2  # images


@dataclass(frozen=True)
class Trial:
    """Runs a learner on grey images whose class is anybody's guess."""

    fabric: Fabric
    learner: Learner
    config: FinetuneConfig
    classes: int
    say: Callable[[str], None]

    def forward(self, count: int) -> Step:
        device = self.fabric.device
        images = torch.zeros(count, self.config.in_chans, *self.config.size, device=device)
        targets = torch.full((count, self.classes), 1 / self.classes, device=device)
        step: Step = self.learner(images, targets)
        return step

    def kernels(self, start: Start, plan: Plan, choices: dict[str, Any]) -> Kernels:
        """How the run's steps are computed: as a checkpoint's choices say, as told, or the fastest here."""
        if "kernels" in choices:
            return Kernels(**choices["kernels"])
        if self.config.kernels.compile == "target":
            raise UsageError("kernels.compile = target: fine-tuning has no target; give model or none")
        return settle_kernels(
            self.fabric,
            self.config.kernels,
            self.learner,
            self.forward,
            MOST_IMAGES,
            plan.total_steps * self.config.batch_size / self.fabric.world_size,
            {"model": start.name, "arguments": repr(start.kwargs), "size": list(self.config.size)},
            self.say,
        )

    def fitting_micro_batch(self) -> int:
        """Images that a device takes at a time."""
        forward = partial(self.forward, FITTED_BY)
        return fit_micro_batch(self.fabric, self.learner, forward, FITTED_BY, self.config.batch_size)
