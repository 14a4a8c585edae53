"""Random block masks: which part of each image is hidden (paper: section 3.1, table 10)."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from fastmim.errors import UsageError
from fastmim.grids import Size, grid_of


@dataclass(frozen=True)
class Masking:
    """What is hidden from the encoder."""

    ratio: float = 0.75
    """Share of the blocks that is masked, between 0 and 1."""
    size: int | None = None
    """Side of a masked block, in pixels. Default: the encoder's stride (ViT-B/16: 16, Swin: 32)."""
    token: Literal["learned", "zeros"] = "learned"
    """What stands in a masked place: one learned number a channel, or zeros."""
    place: Literal["image", "patch"] = "image"
    """Where it stands: in the image's pixels, or in the tokens that the patch embedding makes of them
    (paper: table 10a)."""

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise UsageError(f"mask.ratio = {self.ratio} must lie between 0 and 1, both excluded")
        if self.size is not None and self.size < 1:
            raise UsageError(f"mask.size = {self.size} must be at least 1 pixel")


def masked_count(blocks: int, ratio: float) -> int:
    """How many of ``blocks`` blocks are masked: n - floor(n * (1 - ratio)), never none and never all.

    The product is taken in exact decimals: in floats, 100 * (1 - 0.9) is just below 10.
    """
    if blocks < 2:
        raise UsageError(
            f"an image holds {blocks} block(s), so nothing could be both masked and visible: "
            "use a smaller mask.size or a larger image_size"
        )
    visible = int(blocks * (1 - Fraction(str(ratio))))
    return min(max(blocks - visible, 1), blocks - 1)


def random_block_mask(
    generator: torch.Generator, batch: int, image_size: Size, block: int, ratio: float
) -> Tensor:
    """Boolean (batch, h, w), True = masked: in every sample the same number of blocks, drawn uniformly.

    The grid is rounded up where ``block`` does not divide the image; the last blocks stick out of it.
    """
    h, w = grid_of(image_size, block)
    try:
        count = masked_count(h * w, ratio)
    except UsageError as error:
        size = f"{image_size[0]}x{image_size[1]}"
        raise UsageError(f"mask.size = {block} on images of {size} pixels: {error}") from error
    order = torch.rand(batch, h * w, generator=generator).argsort(dim=1)
    mask = torch.zeros(batch, h * w, dtype=torch.bool)
    mask.scatter_(1, order[:, :count], True)
    return mask.view(batch, h, w)
