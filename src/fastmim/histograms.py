"""Histograms of oriented gradients (HOG) as a plain function of images (paper: section 3.3).

The usual way computes the angle of each gradient with atan2 and scatters its magnitude into a bin.
Neither is needed. A direction and its opposite share a bin, so each gradient is first turned into the
upper half plane; there, "the angle is at least phi" is the sign of one cross product. Summed over a
cell, the magnitudes at or beyond each of the bin borders are a cumulative histogram, and neighbouring
differences are the histogram. No tensor is larger than the image.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmim.errors import UsageError

# Flat regions of 8-bit photos give gradients that are zero on paper and rounding noise in float32,
# and the noise's sign would choose the bin.
ZERO_GRADIENT = 1e-4


def _sobel(images: Tensor) -> tuple[Tensor, Tensor]:
    """Horizontal and vertical 3x3 Sobel responses, each of the images' shape; the border is reflected."""
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    rows = padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]
    columns = padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]
    return rows[..., :-2] - rows[..., 2:], columns[..., :-2, :] - columns[..., 2:, :]


def _histograms(images: Tensor, bins: int, cell: int) -> Tensor:
    """Sums of gradient magnitude per orientation bin: (B, C, H, W) -> (B, C, bins, H/cell, W/cell)."""
    gx, gy = _sobel(images)
    gx = gx.masked_fill(gx.abs() < ZERO_GRADIENT, 0)
    gy = gy.masked_fill(gy.abs() < ZERO_GRADIENT, 0)
    square = gx * gx + gy * gy
    # The root's slope at zero is infinite: there the gradient is defined as zero.
    magnitude = torch.where(square > 0, square, 1).sqrt() * (square > 0)

    # The angle is atan2(gx, gy): gy lies along the axis of angle 0, and gx points upwards.
    below = (gx < 0) | ((gx == 0) & (gy < 0))
    up = torch.where(below, -gx, gx)
    along = torch.where(below, -gy, gy)

    at_least = [F.avg_pool2d(magnitude, cell)]
    for border in range(1, bins):
        phi = math.pi * border / bins
        beyond = up * math.cos(phi) >= along * math.sin(phi)
        at_least.append(F.avg_pool2d(magnitude * beyond, cell))
    at_least.append(torch.zeros_like(at_least[0]))
    cumulative = torch.stack(at_least, dim=2) * cell**2
    return (cumulative[:, :, :-1] - cumulative[:, :, 1:]).clamp(min=0)


def hog(
    images: Tensor, bins: int = 9, cell: int = 8, normalize: bool = True, differentiable: bool = False
) -> Tensor:
    """HOG features of images, per colour channel: the target that FastMIM predicts.

    Args:
        images: (B, C, H, W), any number of channels, any device; half precision is raised to float32.
        bins: orientation bins over 0..pi (unsigned); votes are gradient magnitudes, hard binning.
        cell: side of a cell in pixels; it must divide H and W.
        normalize: scale each channel's histogram of each cell to unit L2 norm.
        differentiable: let gradients flow to ``images`` (through the magnitudes; bins are constants).

    Returns:
        (B, C*bins, H/cell, W/cell), a channel's bins side by side, float32 (float64 for float64 input).

    Raises:
        UsageError: shapes or settings that do not fit.
    """
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
    with (
        torch.set_grad_enabled(differentiable and torch.is_grad_enabled()),
        torch.autocast(images.device.type, enabled=False),
    ):
        precise = images if images.dtype == torch.float64 else images.float()
        histograms = _histograms(precise, bins, cell)
        if normalize:
            histograms = F.normalize(histograms, dim=2)
        return histograms.flatten(1, 2)
