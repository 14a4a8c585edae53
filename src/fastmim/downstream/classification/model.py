"""Classifier of pooled features, and the training module with loss and weight average."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from fastmim.encoders.adapter import Encoder


class PooledClassifier(nn.Module):
    """Mean of a backbone's last features, layer norm, linear layer; for modules without a classifier."""

    def __init__(self, encoder: Encoder, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.norm = nn.LayerNorm(encoder.width)
        self.head = nn.Linear(encoder.width, classes)

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, images_BCHW: Tensor) -> Tensor:
        features_BD = self.encoder(images_BCHW).mean((2, 3))
        logits: Tensor = self.head(self.norm(features_BD))
        return logits


class Step(NamedTuple):
    """Result of a micro-batch."""

    loss: Tensor


class ClassificationModel(nn.Module):
    """A classifier in training with its loss and, optionally, a moving average of its weights (EMA)."""

    def __init__(self, model: nn.Module, ema: float | None) -> None:
        super().__init__()
        self.model = model
        self.mean: ModelEmaV3 | None = None
        self.steps = 0  # updates of the average
        if ema is not None:
            self.mean = ModelEmaV3(model, decay=ema, use_warmup=True).requires_grad_(False)

    def forward(self, images_BCHW: Tensor, targets_BK: Tensor) -> Step:
        """Cross-entropy with soft targets (B, classes)."""
        return Step(F.cross_entropy(self.model(images_BCHW).float(), targets_BK))

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
