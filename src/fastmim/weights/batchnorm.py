"""Re-estimate batch norm statistics on whole images, since pre-training collected them on masked ones."""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastmim.encoders.adapter import Encoder


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Return the batch norm layers of a model that keep running statistics."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


@torch.no_grad()
def recalibrated(encoder: Encoder, batches: Iterable[Tensor], images: int) -> tuple[nn.Module, int, float]:
    """Return a copy of the backbone whose running statistics are the plain mean over some batches.

    Args:
        encoder: is not changed.
        batches: normalised, unmasked images (B, C, H, W) on the encoder's device.
        images: number of images to use, rounded up to whole batches.

    Returns:
        The copy, the number of images used, and the shift of the running means: mean over the channels, in
        standard deviations of each channel before.
    """
    fresh = copy.deepcopy(encoder).eval()
    layers = batch_norms(fresh.model)
    before = [_statistics(layer) for layer in layers]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # cumulative mean
        layer.train()
    used = 0
    for batch in batches:
        fresh(batch)
        used += len(batch)
        if used >= images:
            break
    moved = []
    for layer, momentum, (mean, variance) in zip(layers, momenta, before, strict=True):
        layer.momentum = momentum
        moved.append(((_statistics(layer)[0] - mean).abs() / (variance + layer.eps).sqrt()).mean())
    fresh.model.train(encoder.model.training)
    return fresh.model, used, float(torch.stack(moved).mean())


def _statistics(layer: _BatchNorm) -> tuple[Tensor, Tensor]:
    assert layer.running_mean is not None  # `batch_norms` returns only layers that have both
    assert layer.running_var is not None
    return layer.running_mean.clone(), layer.running_var.clone()
