"""From an encoder to a classifier: whose weights it has, what it pools, which layers learn faster."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from fastmim.encoders.adapter import Encoder


class PooledClassifier(nn.Module):
    """Mean of a backbone's last features, layer norm, linear: for modules that have no classifier."""

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
    """What the loop needs of a micro-batch."""

    loss: Tensor


class ClassificationModel(nn.Module):
    """The classifier in training, its loss, and the running mean of its weights where that is wanted."""

    def __init__(self, model: nn.Module, ema: float | None) -> None:
        super().__init__()
        self.model = model
        self.mean: ModelEmaV3 | None = None
        self.steps = 0  # that the mean has taken in
        if ema is not None:
            self.mean = ModelEmaV3(model, decay=ema, use_warmup=True).requires_grad_(False)

    def forward(self, images_BCHW: Tensor, targets_BK: Tensor) -> Step:
        """Cross-entropy with soft targets (B, classes)."""
        return Step(F.cross_entropy(self.model(images_BCHW).float(), targets_BK))

    @property
    def best(self) -> nn.Module:
        """What is measured and exported."""
        return self.model if self.mean is None else self.mean.module

    def after_step(self) -> None:
        """Let the running mean take in the weights; early on it forgets faster."""
        if self.mean is not None:
            self.steps += 1
            self.mean.update(self.model, step=self.steps)

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.steps)

    def set_extra_state(self, state: Tensor) -> None:
        self.steps = int(state)
