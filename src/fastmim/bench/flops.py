"""Count the multiplications and additions of a step from the shapes of its operations."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fastmim.train.kernels import KernelChoices, apply

COUNTED = 2  # images; all cost the same
PASSES = 3  # one forward product has two backward products: for the gradients of weights and input


@torch.no_grad()
def flops_per_image(module: nn.Module, forward: Callable[[int], Any]) -> float:
    """Count floating-point operations per image in matrix products and convolutions, forward and backward.

    ``module`` is switched to plain attention and stays so: PyTorch does not count the products in fused
    attention on every device. Only the forward pass is counted, since PyTorch counts the backward pass of
    grouped convolutions as if they had one group.

    Args:
        forward: calls ``module`` on the given number of images.
    """
    apply(module, KernelChoices(attention="plain"))
    with FlopCounterMode(display=False) as counter:
        forward(COUNTED)
    total: int = counter.get_total_flops()
    return PASSES * total / COUNTED
