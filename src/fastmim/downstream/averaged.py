"""A model in training with, optionally, a moving average of its weights (EMA)."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn


class Step(NamedTuple):
    """Result of a micro-batch."""

    loss: Tensor


class AveragedModel(nn.Module, ABC):
    """A model with its loss; the average is updated after each step, and is evaluated and exported."""

    def __init__(self, model: nn.Module, ema: float | None) -> None:
        super().__init__()
        self.model = model
        self.mean: ModelEmaV3 | None = None
        self.steps = 0  # updates of the average
        if ema is not None:
            self.mean = ModelEmaV3(model, decay=ema, use_warmup=True).requires_grad_(False)

    @abstractmethod
    def forward(self, images_BCHW: Tensor, targets: Any) -> Step:
        """Return the loss of a micro-batch."""

    @property
    def best(self) -> nn.Module:
        """The model to evaluate and export: the moving average, if any."""
        return self.model if self.mean is None else self.mean.module

    def after_step(self) -> None:
        """Update the moving average; its decay is smaller in early steps (warm-up)."""
        if self.mean is not None:
            self.steps += 1
            self.mean.update(self.model, step=self.steps)

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.steps)

    def set_extra_state(self, state: Tensor) -> None:
        self.steps = int(state)
