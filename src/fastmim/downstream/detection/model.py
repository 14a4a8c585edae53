"""Training module of detection: a detector with its loss."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastmim.downstream.averaged import AveragedModel, Step
from fastmim.downstream.detection.rcnn import Targets
from fastmim.system.size import Size


class Objects(NamedTuple):
    """Objects of the images of a micro-batch."""

    sizes: list[Size]
    """(h, w) of each image on its canvas."""
    targets: Targets


class DetectionModel(AveragedModel):
    """A detector in training."""

    def forward(self, images_BCHW: Tensor, targets: Objects) -> Step:
        """Sum of the losses of region proposals, classes, boxes and masks."""
        _, losses = self.model(images_BCHW, targets.sizes, targets.targets)
        return Step(torch.stack(list(losses.values())).sum())


def unpacked(packed: Tensor, width: int) -> Tensor:
    """Unpack masks (N, H, ceil(W / 8)), uint8, most significant bit first: (N, H, W), 0 or 1."""
    shifts = torch.arange(7, -1, -1, device=packed.device, dtype=torch.uint8)
    return (packed[..., None] >> shifts & 1).flatten(-2)[..., :width]
