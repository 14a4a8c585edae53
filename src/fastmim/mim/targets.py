"""Prediction targets: HOG, pixels, or both. Each is a frozen dataclass that is called on images.

A target is computed from the unmasked image in float32, on a grid of cells. It also defines how it is drawn,
as plain data, and how it is compiled (paper: section 3, "Prediction target", and section 4.1; both kinds at
once: section 7).
"""

from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from fastmim.mim.grids import check_cell, depth_to_space, space_to_depth
from fastmim.mim.hog_features import hog
from fastmim.mim.settings import TargetConfig

DEFAULT_CELL = 8  # pixels, as in the paper


class Lines(NamedTuple):
    """Picture of oriented edges."""

    lengths_Ahw: Tensor
    """(angles, h, w), at least 0: length of the edge orthogonal to a gradient of direction
    pi * (index + 0.5) / angles."""


class Image(NamedTuple):
    """Picture of pixels."""

    values_CHW: Tensor
    """Values in 0..1. One channel is grey, two show the first, more show three as red, green and blue."""


class Target(Protocol):
    """Map images (B, C, H, W) to prediction targets (B, T, H/cell, W/cell), float32."""

    @property
    def cell(self) -> int:
        """Side of a cell, in pixels."""
        ...

    def channels(self, in_chans: int) -> int:
        """Target channels T for images of ``in_chans`` channels."""
        ...

    def channel_weights(self, in_chans: int) -> tuple[float, ...] | None:
        """Weight of each of the T channels in the loss; None: equal weights."""
        ...

    def __call__(self, images_BCHW: Tensor) -> Tensor: ...

    @property
    def title(self) -> str:
        """Title of the target's picture."""
        ...

    def draw(
        self, values_Thw: Tensor, reference_Thw: Tensor, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> Lines | Image:
        """Draw values of the target, on the scale of the reference.

        Args:
            values_Thw: the target or the prediction of one image.
            reference_Thw: the target of the same image.
            mean, std: channel statistics by which images are normalised.
        """
        ...

    def parts_of(self, values_BThw: Tensor, in_chans: int) -> "list[tuple[Target, Tensor]]":
        """Component targets, each with its values on its grid."""
        ...

    def compile(self) -> "Target":
        """Return the same target, computed by torch.compile where that is faster."""
        ...


@dataclass(frozen=True)
class Hog:
    """Histograms of oriented gradients, ``bins`` values per image channel and cell."""

    bins: int = 9
    cell: int = DEFAULT_CELL
    normalize: bool = True
    compiled: bool = False
    """Whether the features are computed by torch.compile."""

    def channels(self, in_chans: int) -> int:
        return in_chans * self.bins

    def channel_weights(self, in_chans: int) -> None:
        return None

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        return hog(images_BCHW, self.bins, self.cell, self.normalize, compiled=self.compiled)

    @property
    def title(self) -> str:
        return "HOG"

    def draw(
        self, values_Thw: Tensor, reference_Thw: Tensor, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> Lines:
        """Draw the histograms as lines, averaged over the colour channels."""
        histograms = values_Thw.reshape(-1, self.bins, *values_Thw.shape[1:])
        return Lines(histograms.clamp(min=0).mean(dim=0))

    def parts_of(self, values_BThw: Tensor, in_chans: int) -> list[tuple[Target, Tensor]]:
        return [(self, values_BThw)]

    def compile(self) -> "Hog":
        return replace(self, compiled=True)


@dataclass(frozen=True)
class Pixels:
    """Pixel values; with ``patch``, each patch is normalised to mean 0 and variance 1."""

    patch: int | None = None
    """Side of a normalised patch, in pixels; None: raw pixels."""
    cell: int = 1

    def channels(self, in_chans: int) -> int:
        return in_chans

    def channel_weights(self, in_chans: int) -> None:
        return None

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        images = images_BCHW.float()
        if self.patch is None:
            return images
        patches = space_to_depth(images, self.patch)
        mean = patches.mean(dim=1, keepdim=True)
        variance = patches.var(dim=1, keepdim=True, correction=1)
        return depth_to_space((patches - mean) / (variance + 1e-6).sqrt(), self.patch)

    @property
    def title(self) -> str:
        return "pixels" if self.patch is None else "normalised pixels"

    def draw(
        self, values_Thw: Tensor, reference_Thw: Tensor, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> Image:
        """Draw raw pixels as colours, normalised ones with the reference's middle 98 % scaled to 0..1."""
        if self.patch is None:
            return Image(denormalize(values_Thw, mean, std))
        low, high = np.quantile(reference_Thw.numpy(), [0.01, 0.99]).tolist()
        return Image(((values_Thw - low) / max(high - low, 1e-6)).clamp(0, 1))

    def parts_of(self, values_BThw: Tensor, in_chans: int) -> list[tuple[Target, Tensor]]:
        return [(self, values_BThw)]

    def compile(self) -> "Pixels":
        return self


@dataclass(frozen=True)
class Weighted:
    """Several targets at once; the total loss is the weighted sum of their losses.

    All are rearranged to the coarsest grid by moving finer cells into channels, so that prediction, target
    and mask remain one tensor each.
    """

    parts: tuple[tuple[Target, float], ...]

    @property
    def cell(self) -> int:
        return max(part.cell for part, _ in self.parts)

    def _channels_of(self, part: Target, in_chans: int) -> int:
        return part.channels(in_chans) * (self.cell // part.cell) ** 2

    def channels(self, in_chans: int) -> int:
        return sum(self._channels_of(part, in_chans) for part, _ in self.parts)

    def channel_weights(self, in_chans: int) -> tuple[float, ...]:
        total = self.channels(in_chans)
        weights: list[float] = []
        for part, weight in self.parts:
            count = self._channels_of(part, in_chans)
            weights += [weight * total / count] * count
        return tuple(weights)

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        return torch.cat(
            [space_to_depth(part(images_BCHW), self.cell // part.cell) for part, _ in self.parts], dim=1
        )

    @property
    def title(self) -> str:
        return " and ".join(part.title for part, _ in self.parts)

    def draw(
        self, values_Thw: Tensor, reference_Thw: Tensor, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> Lines | Image:
        """Draw the first part; use `parts_of` to draw each part."""
        chans = len(mean)
        (part, values), (_, reference) = (
            self.parts_of(tensor.unsqueeze(0), chans)[0] for tensor in (values_Thw, reference_Thw)
        )
        return part.draw(values[0], reference[0], mean, std)

    def parts_of(self, values_BThw: Tensor, in_chans: int) -> list[tuple[Target, Tensor]]:
        counts = [self._channels_of(part, in_chans) for part, _ in self.parts]
        pieces = torch.split(values_BThw, counts, dim=1)
        return [
            (part, depth_to_space(piece, self.cell // part.cell))
            for piece, (part, _) in zip(pieces, self.parts, strict=True)
        ]

    def compile(self) -> "Weighted":
        return Weighted(tuple((part.compile(), weight) for part, weight in self.parts))


def denormalize(image_CHW: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Undo the normalisation of an image (C, H, W), clipped to 0..1."""
    scale, shift = (torch.tensor(values).view(-1, 1, 1) for values in (std, mean))
    return (image_CHW * scale + shift).clamp(0, 1)


def build_target(config: TargetConfig, stride: int) -> Target:
    """Build the target of a configuration, for an encoder whose tokens are ``stride`` pixels apart.

    Raises:
        UsageError: the cell does not fit the stride.
    """
    cell = config.cell or max(c for c in range(1, DEFAULT_CELL + 1) if stride % c == 0)
    check_cell(cell, stride)
    kinds: dict[str, Target] = {
        "hog": Hog(config.bins, cell, config.normalize),
        "pixels": Pixels(),
        "pixels-norm": Pixels(patch=stride),
    }
    names = config.name.split("+")
    if len(names) == 1:
        return kinds[names[0]]
    return Weighted(((kinds[names[0]], 1.0), (kinds[names[1]], config.pixel_weight)))
