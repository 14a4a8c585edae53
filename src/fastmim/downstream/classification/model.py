"""Classifier of pooled features, and the training module with its loss."""

import torch.nn.functional as F
from torch import Tensor, nn

from fastmim.downstream.averaged import AveragedModel, Step
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


class ClassificationModel(AveragedModel):
    """A classifier in training."""

    def forward(self, images_BCHW: Tensor, targets: Tensor) -> Step:
        """Cross-entropy with soft targets (B, classes)."""
        return Step(F.cross_entropy(self.model(images_BCHW).float(), targets))
