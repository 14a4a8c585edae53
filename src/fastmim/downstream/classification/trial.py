"""What is found out before a fine-tuning run by trying a few made images: fast kernels, and how many fit."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from fastmim.config import FinetuneConfig
from fastmim.downstream.classification.model import ClassificationModel, Step
from fastmim.downstream.classification.start import InitialModel
from fastmim.errors import UsageError
from fastmim.train.autotune import StepToTune, autotune
from fastmim.train.device import fit_micro_batch
from fastmim.train.kernels import KernelChoices
from fastmim.train.stages import TrainingPlan

MOST_IMAGES = 64
FITTED_BY = 2  # images


@dataclass(frozen=True)
class Trial:
    """Runs a learner on images of noise whose class is anybody's guess."""

    fabric: Fabric
    learner: ClassificationModel
    config: FinetuneConfig
    classes: int
    say: Callable[[str], None]

    def inputs(self, count: int) -> tuple[Tensor, Tensor]:
        """Images and targets."""
        device = self.fabric.device
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(count, self.config.in_chans, *self.config.size, generator=generator)
        return images.to(device), torch.full((count, self.classes), 1 / self.classes, device=device)

    def forward(self, count: int) -> Step:
        step: Step = self.learner(*self.inputs(count))
        return step

    def kernels(self, start: InitialModel, plan: TrainingPlan, choices: dict[str, Any]) -> KernelChoices:
        """How the run's steps are computed: as a checkpoint's choices say, as told, or the fastest here."""
        if "kernels" in choices:
            return KernelChoices(**choices["kernels"])
        if self.config.kernels.compile == "target":
            raise UsageError("kernels.compile = target: fine-tuning has no target; give model or none")
        return autotune(
            self.fabric,
            self.config.kernels,
            StepToTune(
                self.learner,
                self.inputs,
                min(MOST_IMAGES, max(1, self.config.batch_size // self.fabric.world_size)),
                plan.total_steps * self.config.batch_size / self.fabric.world_size,
                {"model": start.name, "arguments": repr(start.kwargs), "size": list(self.config.size)},
            ),
            self.say,
        )

    def fitting_micro_batch(self) -> int:
        """Images that a device takes at a time."""
        forward = partial(self.forward, FITTED_BY)
        return fit_micro_batch(self.fabric, self.learner, forward, FITTED_BY, self.config.batch_size)
