"""Draw random masks of images (paper: section 4.1; appendix A.2, table 10)."""

import math
from fractions import Fraction

import torch
from torch import Tensor

from fastmim.errors import UsageError
from fastmim.mim.grids import grid_of
from fastmim.mim.settings import Masking, Pattern
from fastmim.system.size import Size

LEAST_AREA, MOST_ASPECT = 16, 1 / 0.3  # area in blocks and aspect ratio of a rectangle, as in BEiT


def masked_count(blocks: int, ratio: float, pattern: Pattern = "random") -> int:
    """Number of masked blocks among ``blocks``: at least one, and never all.

    It is n - floor(n * (1 - ratio)) as in FastMIM's released code, and floor(n * ratio) for rectangles as in
    MaskFeat's released code (78 of 196). Products are exact decimals: in floating point, 100 * (1 - 0.9) is
    just below 10.

    Raises:
        UsageError: there are fewer than 2 blocks.
    """
    if blocks < 2:
        raise UsageError(
            f"an image holds {blocks} block(s), so nothing could be both masked and visible: "
            "use a smaller mask.size or a larger image_size"
        )
    share = Fraction(str(ratio))
    count = int(blocks * share) if pattern == "blockwise" else blocks - int(blocks * (1 - share))
    return min(max(count, 1), blocks - 1)


def draw_blocks(
    masking: Masking, generator: torch.Generator, batch: int, image_size: Size, block: int
) -> Tensor:
    """Draw masks by the pattern of ``masking``: boolean (batch, h, w), True = masked.

    See `random_block_mask` and `blockwise_mask`.
    """
    draw = random_block_mask if masking.pattern == "random" else blockwise_mask
    return draw(generator, batch, image_size, block, masking.ratio)


def random_block_mask(
    generator: torch.Generator, batch: int, image_size: Size, block: int, ratio: float
) -> Tensor:
    """Draw the same number of blocks uniformly in every sample: boolean (batch, h, w), True = masked.

    The grid is rounded up where ``block`` does not divide the image; the last blocks then extend beyond it.
    """
    (h, w), count = _grid_and_count(image_size, block, ratio)
    order = torch.rand(batch, h * w, generator=generator).argsort(dim=1)
    mask = torch.zeros(batch, h * w, dtype=torch.bool)
    mask.scatter_(1, order[:, :count], True)
    return mask.view(batch, h, w)


def blockwise_mask(
    generator: torch.Generator, batch: int, image_size: Size, block: int, ratio: float
) -> Tensor:
    """Draw masks as `random_block_mask`, in rectangles of random area and aspect (BEiT, Bao et al. 2021).

    Every sample has the same number of masked blocks: the last rectangle is cut to the number still missing.
    """
    (h, w), count = _grid_and_count(image_size, block, ratio, "blockwise")
    rows, columns = torch.arange(h).view(1, h, 1), torch.arange(w).view(1, 1, w)
    mask = torch.zeros(batch, h, w, dtype=torch.bool)
    while True:
        missing = count - mask.sum(dim=(1, 2))
        if not missing.any():
            return mask
        area, aspect, down, right = torch.rand(4, batch, generator=generator)
        least = missing.clamp(max=LEAST_AREA)
        area = least + area * (missing - least)
        root = torch.exp((2 * aspect - 1) * math.log(MOST_ASPECT) / 2)
        height = (area.sqrt() * root).round().clamp(1, h)
        width = (area.sqrt() / root).round().clamp(1, w)
        top, left = (down * (h - height + 1)).floor(), (right * (w - width + 1)).floor()
        tall = (rows >= top.view(-1, 1, 1)) & (rows < (top + height).view(-1, 1, 1))
        wide = (columns >= left.view(-1, 1, 1)) & (columns < (left + width).view(-1, 1, 1))
        new = tall & wide & ~mask
        order = new.flatten(1).cumsum(dim=1).view_as(new)
        mask |= new & (order <= missing.view(-1, 1, 1))


def _grid_and_count(
    image_size: Size, block: int, ratio: float, pattern: Pattern = "random"
) -> tuple[Size, int]:
    h, w = grid_of(image_size, block)
    try:
        return (h, w), masked_count(h * w, ratio, pattern)
    except UsageError as error:
        size = f"{image_size[0]}x{image_size[1]}"
        raise UsageError(f"mask.size = {block} on images of {size} pixels: {error}") from error
