"""What is to be predicted: HOG, pixels, or both, each a frozen dataclass that is called on images.

A target is computed from the unmasked image in float32 and lives on its own grid of cells
(paper: section 3, "Prediction target", and section 4.1; both kinds at once: section 7).
"""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from fastmim.mim.grids import check_cell, depth_to_space, space_to_depth
from fastmim.mim.hog_features import hog
from fastmim.mim.settings import TargetConfig

DEFAULT_CELL = 8  # pixels; the paper's


class Target(Protocol):
    """Images (B, C, H, W) -> what to predict, (B, T, H/cell, W/cell), float32."""

    @property
    def cell(self) -> int:
        """Side of a cell, in pixels."""
        ...

    def channels(self, in_chans: int) -> int:
        """T, for images of ``in_chans`` channels."""
        ...

    def channel_weights(self, in_chans: int) -> tuple[float, ...] | None:
        """How much each of the T channels counts in the loss; None: all the same."""
        ...

    def __call__(self, images_BCHW: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Hog:
    """Histograms of oriented gradients, ``bins`` numbers a channel and cell."""

    bins: int = 9
    cell: int = DEFAULT_CELL
    normalize: bool = True
    compiled: bool = False
    """Through torch.compile."""

    def channels(self, in_chans: int) -> int:
        return in_chans * self.bins

    def channel_weights(self, in_chans: int) -> None:
        return None

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        return hog(images_BCHW, self.bins, self.cell, self.normalize, compiled=self.compiled)


@dataclass(frozen=True)
class Pixels:
    """The pixels themselves; with ``patch``, each patch is brought to mean 0 and variance 1 first."""

    patch: int | None = None
    """Side of the patches that are normalised, in pixels; None: raw pixels."""
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


@dataclass(frozen=True)
class Weighted:
    """Several targets at once: their losses are added, each times its weight.

    All are brought to the grid of the coarsest by moving pixels into channels, so that prediction,
    target and mask stay one tensor each.
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

    def split(self, prediction: Tensor, in_chans: int) -> list[Tensor]:
        """A tensor on the common grid -> one tensor a part, each on that part's own grid."""
        counts = [self._channels_of(part, in_chans) for part, _ in self.parts]
        pieces = torch.split(prediction, counts, dim=1)
        return [
            depth_to_space(piece, self.cell // part.cell)
            for piece, (part, _) in zip(pieces, self.parts, strict=True)
        ]


def build_target(config: TargetConfig, stride: int) -> Target:
    """The target of a configuration, for an encoder whose tokens are ``stride`` pixels apart."""
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


def compiled_target(target: Target) -> Target:
    """The same target, with what it holds of HOG compiled."""
    if isinstance(target, Hog):
        return replace(target, compiled=True)
    if isinstance(target, Weighted):
        return Weighted(tuple((compiled_target(part), weight) for part, weight in target.parts))
    return target
