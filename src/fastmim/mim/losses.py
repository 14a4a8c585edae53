"""Means over the masked cells only, and what the best constant guess would score."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmim.mim.settings import LossName


def _per_cell(name: LossName, prediction: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
    """(B, T, h, w) twice -> (B, h, w): the mean over channels, or 1 - cosine similarity of them."""
    if name == "cosine":
        return 1 - F.cosine_similarity(prediction, target, dim=1)
    if name == "l2":
        distance = (prediction - target).square()
    elif name == "l1":
        distance = (prediction - target).abs()
    else:
        distance = F.smooth_l1_loss(prediction, target, reduction="none")
    if weights is not None:
        distance = distance * weights.view(1, -1, 1, 1)
    return distance.mean(dim=1)


def masked_loss(
    name: LossName,
    prediction_BThw: Tensor,
    target_BThw: Tensor,
    mask_Bhw: Tensor,
    channel_weights: Sequence[float] | None = None,
) -> Tensor:
    """Mean of a distance over masked cells and their channels, a float32 scalar.

    Args:
        name: l2 (mean squared error, the paper's), l1, smooth-l1 or cosine.
        prediction_BThw, target_BThw: (B, T, h, w) on the target's own grid.
        mask_Bhw: True where a cell is masked, or how often it counts; visible cells have no influence,
            not even as NaN.
        channel_weights: T numbers that the channels' distances are multiplied by.
    """
    with torch.autocast(prediction_BThw.device.type, enabled=False):
        weights = None
        if channel_weights is not None:  # a plain copy would wait for the device
            weights = torch.tensor(channel_weights).to(target_BThw.device, non_blocking=True)
        cells = _per_cell(name, prediction_BThw.float(), target_BThw.float(), weights)
        return torch.where(mask_Bhw > 0, cells * mask_Bhw, 0).sum() / mask_Bhw.sum().clamp(min=1)


def constant_prediction(target_BThw: Tensor, mask_Bhw: Tensor) -> Tensor:
    """The constant baseline: each channel's mean over the masked cells, spread to the target's shape.

    Where the mask says how often a cell counts, the mean heeds it.
    """
    mask = mask_Bhw.unsqueeze(1)
    mean_T = torch.where(mask > 0, target_BThw * mask, 0).sum(dim=(0, 2, 3)) / mask.sum().clamp(min=1)
    return mean_T.view(1, -1, 1, 1).expand_as(target_BThw)
