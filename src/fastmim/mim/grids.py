"""Conversions between pixels, blocks, cells and tokens; no other module reshapes them.

Letters: B batch, C channels, H W pixels, h w cells or tokens, D width, T target channels.
A mask is boolean and True means masked, on every grid.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmim.errors import UsageError
from fastmim.system.size import Size


def grid_of(image_size: Size, block: int) -> Size:
    """Grid (h, w) of blocks (or cells, or tokens) that covers an image of (H, W) pixels, rounded up.

    Blocks of the last row and column may extend beyond the image.
    """
    return -(-image_size[0] // block), -(-image_size[1] // block)


def spread_mask(mask_Bhw: Tensor, factor: int, size: Size) -> Tensor:
    """Repeat each entry of a mask ``factor`` times along both axes and crop to ``size``."""
    spread = mask_Bhw.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)
    return spread[:, : size[0], : size[1]]


def mask_to_pixels(mask_Bhw: Tensor, block: int, image_size: Size) -> Tensor:
    """Expand a mask of blocks (B, h, w) to a mask of pixels (B, H, W)."""
    return spread_mask(mask_Bhw, block, image_size)


def mask_to_cells(mask_Bhw: Tensor, block: int, cell: int, image_size: Size) -> Tensor:
    """Convert a mask of blocks of ``block`` pixels to one of cells of ``cell`` pixels, (B, H/cell, W/cell).

    A cell is masked only if all of its pixels are: a partly visible cell does not enter the loss.
    """
    cells = (image_size[0] // cell, image_size[1] // cell)
    if block % cell == 0:
        return spread_mask(mask_Bhw, block // cell, cells)
    pixels_B1HW = mask_to_pixels(mask_Bhw, block, image_size).unsqueeze(1).float()
    return F.avg_pool2d(pixels_B1HW, cell).squeeze(1) > 1 - 0.5 / cell**2


def tokens_to_map(tokens_BND: Tensor, grid: Size) -> Tensor:
    """Reshape row-major tokens (B, h*w, D) to a feature map (B, D, h, w)."""
    batch, _, width = tokens_BND.shape
    return tokens_BND.transpose(1, 2).reshape(batch, width, *grid)


def map_to_tokens(features_BDhw: Tensor) -> Tensor:
    """Reshape a feature map (B, D, h, w) to row-major tokens (B, h*w, D)."""
    return features_BDhw.flatten(2).transpose(1, 2)


def visible_places(mask_Bhw: Tensor, count: int) -> Tensor:
    """Row-major indices of the visible entries of each mask: (B, count), ascending.

    Every mask must have ``count`` visible entries. This is not checked, because a check would synchronise
    with the GPU.
    """
    return mask_Bhw.flatten(1).byte().argsort(dim=1, stable=True)[:, :count]


def take_tokens(tokens_BND: Tensor, places_BK: Tensor) -> Tensor:
    """Select the tokens at indices (B, K) from tokens (B, N, D): (B, K, D)."""
    return tokens_BND.gather(1, places_BK.unsqueeze(-1).expand(-1, -1, tokens_BND.shape[2]))


def put_tokens(tokens_BKD: Tensor, places_BK: Tensor, filler_D: Tensor, count: int) -> Tensor:
    """Place tokens (B, K, D) at indices (B, K) among ``count``, with the filler elsewhere: (B, count, D).

    This is the inverse of `take_tokens`.
    """
    batch, _, width = tokens_BKD.shape
    filled = filler_D.to(tokens_BKD.dtype).expand(batch, count, width)
    return filled.scatter(1, places_BK.unsqueeze(-1).expand(-1, -1, width), tokens_BKD)


def take_blocks(images_BCHW: Tensor, places_BV: Tensor, side: int) -> Tensor:
    """Select the blocks of ``side`` by ``side`` pixels at indices (B, V) of each image, next to one another.

    Returns:
        (B, C, side, V * side): a strip of blocks in the order of the indices.
    """
    batch, channels, height, width = images_BCHW.shape
    h, w, count = height // side, width // side, places_BV.shape[1]
    tiles = images_BCHW.reshape(batch, channels, h, side, w, side).permute(0, 2, 4, 1, 3, 5)
    blocks = tiles.reshape(batch * h * w, channels, side, side)[_rows(places_BV, h * w)]
    strip = blocks.view(batch, count, channels, side, side).permute(0, 2, 3, 1, 4)
    return strip.reshape(batch, channels, side, count * side)


def put_blocks(strip_BCsL: Tensor, places_BV: Tensor, grid: Size) -> Tensor:
    """Place a strip's blocks at their indices on ``grid`` = (h, w), with zeros elsewhere.

    This is the inverse of `take_blocks`.
    """
    (batch, channels, side, _), (h, w) = strip_BCsL.shape, grid
    tiles = strip_BCsL.reshape(batch, channels, side, places_BV.shape[1], side).permute(0, 3, 1, 2, 4)
    blocks = tiles.reshape(-1, channels, side, side)
    empty = blocks.new_zeros(batch * h * w, channels, side, side)
    whole = empty.index_put((_rows(places_BV, h * w),), blocks)
    image = whole.view(batch, h, w, channels, side, side).permute(0, 3, 1, 4, 2, 5)
    return image.reshape(batch, channels, h * side, w * side)


def _rows(places_BV: Tensor, count: int) -> Tensor:
    """Convert indices within each image, of ``count`` entries, to flat indices over the whole batch."""
    first = count * torch.arange(len(places_BV), device=places_BV.device)
    return (places_BV + first.unsqueeze(1)).flatten()


def pairs(mask_Bhw: Tensor) -> Tensor:
    """Group a mask (B, h, w) into 2x2 squares: (B, h/2, w/2, 4), each square's entries in row-major order."""
    batch, h, w = mask_Bhw.shape
    return mask_Bhw.view(batch, h // 2, 2, w // 2, 2).transpose(2, 3).flatten(3)


def pick_of_pairs(images_BCHW: Tensor, quadrant_Bij: Tensor, patch: int) -> Tensor:
    """Select one patch of each 2x2 square and join the patches to a compact image (B, C, H/2, W/2).

    Args:
        images_BCHW: images (B, C, H, W).
        quadrant_Bij: number of the selected patch in each square, 0 to 3.
        patch: side of a patch, in pixels.
    """
    batch, channels, height, width = images_BCHW.shape
    i, j = quadrant_Bij.shape[1:]
    tiles = images_BCHW.view(batch, channels, i, 2, patch, j, 2, patch)
    tiles_B4CiPjP = tiles.permute(0, 3, 6, 1, 2, 4, 5, 7).flatten(1, 2)
    choice = quadrant_Bij.view(batch, 1, 1, i, 1, j, 1)
    picked = tiles_B4CiPjP.take_along_dim(choice, dim=1)
    return picked.reshape(batch, channels, height // 2, width // 2)


def space_to_depth(images_BCHW: Tensor, patch: int) -> Tensor:
    """Move each patch's pixels into channels: (B, C, H, W) -> (B, C*patch*patch, H/patch, W/patch)."""
    return F.pixel_unshuffle(images_BCHW, patch)


def depth_to_space(features: Tensor, patch: int) -> Tensor:
    """Invert `space_to_depth`: (B, C*patch*patch, h, w) -> (B, C, h*patch, w*patch)."""
    return F.pixel_shuffle(features, patch)


def check_cell(cell: int, stride: int) -> None:
    """Raise UsageError unless the cell side divides the stride, or the stride divides the cell side."""
    if cell < 1 or (stride % cell and cell % stride):
        fitting = [c for c in range(1, 2 * stride + 1) if stride % c == 0 or c % stride == 0]
        raise UsageError(
            f"target.cell = {cell} does not fit the encoder's stride of {stride} pixels; "
            f"these do: {', '.join(map(str, fitting))}"
        )


def channels_per_token(channels: int, stride: int, cell: int) -> int:
    """Output channels per token from which `tokens_to_cells` obtains ``channels`` per cell."""
    return channels * (stride // cell) ** 2 if stride % cell == 0 else channels


def tokens_to_cells(predictions: Tensor, stride: int, cell: int) -> Tensor:
    """Convert per-token predictions (B, T*(stride/cell)^2, h, w) to the target's grid (B, T, H/cell, W/cell).

    Where a cell is larger than a token, the predictions of its tokens are averaged.
    """
    if stride % cell == 0:
        return depth_to_space(predictions, stride // cell)
    return F.avg_pool2d(predictions, cell // stride)


def shrink_map(features_BDhw: Tensor, grid: Size) -> Tensor:
    """Average a map over the area of each position of a coarser ``grid``: (B, D, h, w) -> (B, D, *grid).

    Equals `F.adaptive_avg_pool2d` where the sides divide; elsewhere, a position that overlaps several new
    ones is weighted by the share of overlap. The average is computed as two matrix products, so that the
    gradient is bitwise reproducible on every device.
    """
    for axis, places in ((2, grid[0]), (3, grid[1])):
        if features_BDhw.shape[axis] != places:
            shares = _area_shares(features_BDhw.shape[axis], places)
            shares = shares.to(features_BDhw, non_blocking=True)  # a blocking copy would synchronise
            features_BDhw = torch.movedim(torch.movedim(features_BDhw, axis, -1) @ shares, -1, axis)
    return features_BDhw


def _area_shares(before: int, after: int) -> Tensor:
    """Share of each old position in each new one, (before, after); columns sum to 1."""
    edges_old = torch.arange(before + 1, dtype=torch.float64) / before
    edges_new = torch.arange(after + 1, dtype=torch.float64) / after
    upper = torch.minimum(edges_old[1:, None], edges_new[1:])
    lower = torch.maximum(edges_old[:-1, None], edges_new[:-1])
    return (upper - lower).clamp(min=0) * after


def coarser(one: Size, other: Size) -> Size:
    """The smaller of two grids along each side."""
    return min(one[0], other[0]), min(one[1], other[1])
