"""Multiplications and additions of a step, counted from the shapes of its operations."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fastmim.train.kernels import KernelChoices, apply

COUNTED = 2  # images; all are alike
PASSES = 3  # for each product forward, two backward: for the weights' gradient, and for the input's


@torch.no_grad()
def flops_per_image(module: nn.Module, forward: Callable[[int], Any]) -> float:
    """Floating-point operations of an image's matrix products and convolutions, forward and backward.

    Counted with plain attention, in which ``module`` is left: PyTorch does not see the products within fused
    attention on every device. Only the forward pass is looked at, as PyTorch counts the backward pass of
    grouped convolutions as if they had one group.

    Args:
        forward: calls ``module`` on so many images.
    """
    apply(module, KernelChoices(attention="plain"))
    with FlopCounterMode(display=False) as counter:
        forward(COUNTED)
    total: int = counter.get_total_flops()
    return PASSES * total / COUNTED
