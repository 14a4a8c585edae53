"""Compare HOG with its usual implementation, which is kept here as the baseline."""

import math
import shutil
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmim.bench.measure import Figure, medians, side_by_side
from fastmim.mim.hog_features import hog

if TYPE_CHECKING:
    from collections.abc import Callable

COMPILED_TARGET, EAGER_TARGET = 20.0, 4.0  # times the speed of `plain_hog`
AGREEMENT = 1e-2  # relative: a gradient on the border between two bins may fall into either


def plain_hog(images: Tensor, bins: int = 9, cell: int = 8) -> Tensor:
    """Compute HOG with atan2 and scatter: (B, C, H, W) -> (B, C*bins, H/cell, W/cell).

    Each pixel's gradient magnitude is added to one of ``bins`` planes of the image's size.
    """
    batch, channels, height, width = images.shape
    kernel = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]], device=images.device)
    kernels = torch.stack([kernel, kernel.T]).unsqueeze(1).repeat(channels, 1, 1, 1)
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    gradients = F.conv2d(padded, kernels, groups=channels).view(batch, channels, 2, height, width)
    gx, gy = gradients[:, :, 0], gradients[:, :, 1]
    magnitude = (gx * gx + gy * gy).sqrt()
    number = (torch.atan2(gx, gy) / math.pi * bins).floor().long() % bins
    planes = torch.zeros(batch, channels, bins, height, width, device=images.device)
    planes.scatter_add_(2, number.unsqueeze(2), magnitude.unsqueeze(2))
    cells = planes.view(batch, channels, bins, height // cell, cell, width // cell, cell).sum((4, 6))
    return F.normalize(cells, dim=2).flatten(1, 2)


def can_compile(device: torch.device) -> bool:
    """Return whether torch.compile works here: a CPU needs a C++ compiler."""
    return device.type != "cpu" or any(shutil.which(name) for name in ("c++", "g++", "clang++"))


@torch.no_grad()
def bench_hog(device: torch.device, batch: int, size: int, rounds: int) -> list[Figure]:
    """Measure milliseconds per image of `plain_hog`, of our HOG, and of our HOG compiled."""
    images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    contestants: dict[str, Callable[[], Any]] = {
        "plain": lambda: plain_hog(images),
        "eager": lambda: hog(images),
    }
    if can_compile(device):
        contestants["compiled"] = lambda: hog(images, compiled=True)
    reference = plain_hog(images)
    for name, contestant in contestants.items():
        error = float((contestant() - reference).norm() / reference.norm())
        if error > AGREEMENT:
            raise AssertionError(f"{name} differs from the plain form by {error:.1e}")
    each = {
        name: 1000 * seconds / batch
        for name, seconds in medians(side_by_side(contestants, device, rounds)).items()
    }
    lines = []
    for name, target in (("eager", EAGER_TARGET), ("compiled", COMPILED_TARGET)):
        if name in each:
            ratio = each["plain"] / each[name]
            lines.append(
                Figure(
                    f"HOG of {size}x{size} pixels, {name}",
                    each[name],
                    "ms/image",
                    "conv2d, atan2, scatter_add",
                    each["plain"],
                    ratio,
                    target=f"at least {target:g} times",
                    met=ratio >= target,
                )
            )
    return lines
