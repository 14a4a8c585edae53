"""Histograms of oriented gradients (HOG) as a plain function of images (paper: section 4.1).

The usual implementation computes the angle of each gradient with atan2 and scatters its magnitude into a bin.
This one needs neither. A direction and its opposite share a bin, and the cotangent of the angle is the same
for both; "the angle is at least phi" is one comparison with the cotangent of phi. Summed over a cell, the
magnitudes at or beyond each bin border form a cumulative histogram, and the differences of neighbouring
entries are the histogram. No tensor is larger than the image.
"""

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmim.errors import UsageError

# In flat regions of 8-bit photos, gradients are exactly zero in theory but rounding noise in float32, and
# the sign of the noise would determine the bin.
ZERO_GRADIENT = 1e-4
TINY = 1e-30  # below any relevant squared gradient; its root is far below any relevant magnitude
CPU_VALUES = 2**18  # values per chunk on a CPU: intermediate results stay in its cache


def _reflected(images: Tensor) -> Tensor:
    """Pad images by one mirrored pixel on each side. Slices compile to faster code than F.pad."""
    wider = torch.cat([images[..., 1:2], images, images[..., -2:-1]], dim=-1)
    return torch.cat([wider[..., 1:2, :], wider, wider[..., -2:-1, :]], dim=-2)


def _sobel(images: Tensor) -> tuple[Tensor, Tensor]:
    """Horizontal and vertical 3x3 Sobel responses, each in the shape of the images."""
    padded = _reflected(images)
    rows = torch.add(padded[..., :-2, :], padded[..., 1:-1, :], alpha=2) + padded[..., 2:, :]
    columns = torch.add(padded[..., :-2], padded[..., 1:-1], alpha=2) + padded[..., 2:]
    return rows[..., :-2] - rows[..., 2:], columns[..., :-2, :] - columns[..., 2:, :]


def _sum_rows(values: Tensor, cell: int) -> Tensor:
    """Sum over the rows of each cell: (B, C, H, W) -> (B, C, H/cell, W)."""
    batch, channels, height, width = values.shape
    return values.reshape(batch, channels, height // cell, cell, width).sum(3)


def _sum_columns(values: Tensor, cell: int) -> Tensor:
    """Sum over the columns of each cell: (..., W) -> (..., W/cell).

    Columns are added one by one, because a reduction over such a short axis is slow.
    """
    columns = values.reshape(*values.shape[:-1], values.shape[-1] // cell, cell)
    total: Tensor = columns[..., 0]
    for column in range(1, cell):
        total = total + columns[..., column]
    return total


def _up_to(values: Tensor, limit: float, weights: Tensor) -> Tensor:
    """``weights`` where ``values`` are at most ``limit``, else 0."""
    if torch.compiler.is_compiling():
        return torch.where(values <= limit, weights, 0)
    return weights * torch.le(values, limit, out=torch.empty_like(values))


def _histograms(images: Tensor, bins: int, cell: int, normalize: bool) -> Tensor:
    """Sums of gradient magnitude per orientation bin: (B, C, H, W) -> (B, C*bins, H/cell, W/cell).

    Every operation is one that eager kernels vectorise; a single ``where`` here would take longer than all
    other operations together.
    """
    gx, gy = (F.hardshrink(gradient, ZERO_GRADIENT) for gradient in _sobel(images))
    gx_square = gx * gx
    # The square root has an infinite slope at zero, so the gradient there is defined as zero.
    length = torch.addcmul(gx_square, gy, gy).clamp(min=TINY).sqrt()
    magnitude = F.threshold(length, 2 * math.sqrt(TINY), 0.0)

    # The angle is atan2(gx, gy), so its cotangent is gy / gx. Written as gx * gy / gx^2, it is NaN for both
    # signs of an angle of 0, and NaN is beyond no border.
    cotangent = (gx * gy / gx_square).detach()
    at_least = [_sum_rows(magnitude, cell)]
    for border in range(1, bins):
        phi = math.pi * border / bins
        beyond = _up_to(cotangent, math.cos(phi) / math.sin(phi), magnitude)
        at_least.append(_sum_rows(beyond, cell))
    cumulative = _sum_columns(torch.stack(at_least, dim=2), cell)
    within = cumulative[:, :, :-1] - cumulative[:, :, 1:]
    histograms = torch.cat([within, cumulative[:, :, -1:]], dim=2).clamp(min=0)
    if normalize:
        norm = (histograms * histograms).sum(2, keepdim=True).clamp(min=1e-24).sqrt()
        histograms = histograms / norm
    return histograms.flatten(1, 2)


@functools.cache
def _compiled() -> Callable[[Tensor, int, int, bool], Tensor]:
    return torch.compile(_histograms)


def hog(
    images: Tensor,
    bins: int = 9,
    cell: int = 8,
    normalize: bool = True,
    differentiable: bool = False,
    compiled: bool = False,
) -> Tensor:
    """Compute HOG features of images per colour channel, the prediction target of FastMIM.

    Args:
        images: (B, C, H, W), any number of channels, any device; half precision is raised to float32.
        bins: orientation bins over 0..pi (unsigned); votes are gradient magnitudes, hard binning.
        cell: side of a cell in pixels; it must divide H and W.
        normalize: scale each channel's histogram of each cell to unit L2 norm.
        differentiable: let gradients flow to ``images`` (through the magnitudes; bins are constants).
        compiled: use torch.compile: several times faster, after some seconds of compilation at the first
            call; on a CPU it needs a C++ compiler.

    Returns:
        (B, C*bins, H/cell, W/cell), the bins of a channel contiguous, float32 (float64 for float64 input).

    Raises:
        UsageError: the shapes or settings do not fit.
    """
    # Check the arguments.
    if images.ndim != 4:
        raise UsageError(f"hog takes images of shape (B, C, H, W), not {tuple(images.shape)}")
    if bins < 1 or cell < 1:
        raise UsageError(f"hog needs at least 1 bin and cells of at least 1 pixel, not {bins} and {cell}")
    height, width = images.shape[-2:]
    if height % cell or width % cell or min(height, width) < 2:
        raise UsageError(
            f"hog: cells of {cell} pixels do not tile an image of {height}x{width}; "
            "both sides must be multiples of the cell"
        )

    # Compute in full precision; on a CPU in chunks that fit into the cache.
    with (
        torch.set_grad_enabled(differentiable and torch.is_grad_enabled()),
        torch.autocast(images.device.type, enabled=False),
    ):
        precise = (images if images.dtype == torch.float64 else images.float()).contiguous()
        if torch.compiler.is_compiling():
            return _histograms(precise, bins, cell, normalize)
        compute = _compiled() if compiled else _histograms
        if images.device.type != "cpu":
            return compute(precise, bins, cell, normalize)
        at_a_time = 2 ** max(0, int(math.log2(CPU_VALUES / max(1, images.shape[1:].numel()))))
        parts = torch.split(precise, at_a_time)
        return torch.cat([compute(part, bins, cell, normalize) for part in parts])
