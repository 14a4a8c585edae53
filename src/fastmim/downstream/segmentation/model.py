"""Training module of segmentation: a segmenter with its loss."""

import torch.nn.functional as F
from torch import Tensor

from fastmim.data.annotations.masks import IGNORED
from fastmim.downstream.averaged import AveragedModel, Step
from fastmim.downstream.segmentation.uper_net import Segmenter


class SegmentationModel(AveragedModel):
    """A segmenter in training."""

    model: Segmenter

    def __init__(self, model: Segmenter, ema: float | None, aux_weight: float) -> None:
        super().__init__(model, ema)
        self.aux_weight = aux_weight

    def forward(self, images_BCHW: Tensor, targets: Tensor) -> Step:
        """Return the loss against class numbers (B, H, W), see `pixel_loss`."""
        logits, auxiliary = self.model.with_auxiliary(images_BCHW)
        loss = pixel_loss(logits, targets)
        if auxiliary is not None:
            loss = loss + self.aux_weight * pixel_loss(auxiliary, targets)
        return Step(loss)


def pixel_loss(logits_BKHW: Tensor, targets_BHW: Tensor) -> Tensor:
    """Cross-entropy, mean over all pixels, with 0 for those that are ignored.

    MMSegmentation, which BEiT and its successors used, averages in the same way by default. The divisor is
    equal for all micro-batches and processes, so that their mean is that of the whole batch.
    """
    losses = F.cross_entropy(logits_BKHW, targets_BHW, ignore_index=IGNORED, reduction="sum")
    return losses / targets_BHW.numel()
