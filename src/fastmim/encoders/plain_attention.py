"""Window attention and relative positions for plain vision transformers, in detection and segmentation only.

Global attention over the 4,096 tokens of a 1024-pixel image does not fit many GPUs. ViTDet (Li et al. 2022,
"Exploring Plain Vision Transformer Backbones for Object Detection", section 3) attends within windows in all
blocks but a few, evenly spaced ones. Both changes are hooks on an unchanged model: its keys remain those of
timm, but for the tables of relative positions.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.pos_embed_rel import RelPosBias
from torch import Tensor, nn

from fastmim.encoders.adapter import Encoder
from fastmim.errors import UsageError
from fastmim.system.size import Size

GLOBAL_BLOCKS = 4  # with global attention: the last block of each of four subsets
TABLE = "relative_positions"  # name of the table in an attention module


def set_plain_attention(encoder: Encoder, window: int | None, relative_positions: bool) -> None:
    """Let a plain vision transformer attend within windows, or add relative positions to its attention.

    Called once, at the image size of the task.

    Args:
        window: side of a window in tokens; None: attention stays global.
        relative_positions: add a table of relative positions to each attention layer, initialised with zeros.

    Raises:
        UsageError: the backbone is not a plain vision transformer of timm's form.
    """
    if window is None and not relative_positions:
        return
    setting = f"vit_windows = {window}" if window is not None else "relative_positions = true"
    blocks = plain_blocks(encoder, setting)
    prefix, grid = encoder.prefix_tokens, encoder.grid
    ends = {-(-len(blocks) * quarter // GLOBAL_BLOCKS) - 1 for quarter in range(1, GLOBAL_BLOCKS + 1)}
    for number, block in enumerate(blocks):
        size, mask = grid, None
        if window is not None and number not in ends:
            windows = _Windows(grid, window, prefix)
            block.register_forward_pre_hook(windows.enter)
            block.register_forward_hook(windows.leave)
            size, mask = (window, window), windows.mask
        attention = block.attn
        if relative_positions:
            if prefix > 1:
                raise UsageError(
                    f"{setting}: {encoder.model_name} has {prefix} prefix tokens; one is supported"
                )
            table = RelPosBias(size, attention.num_heads, prefix)
            nn.init.zeros_(table.relative_position_bias_table)
            attention.add_module(TABLE, table.to(next(attention.parameters()).device))
        if relative_positions or mask is not None:
            attention.register_forward_pre_hook(_AddMask(mask), with_kwargs=True)


def plain_blocks(encoder: Encoder, setting: str) -> list[Any]:
    """Return the blocks of a plain vision transformer.

    Raises:
        UsageError: the backbone has none, or they need more than tokens.
    """
    blocks = list(getattr(encoder.model, "blocks", ()))
    plain = encoder.layout == "tokens" and blocks and len(blocks) == len(encoder.layers)
    for block in blocks:
        attention = getattr(block, "attn", None)
        takes = inspect.signature(attention.forward).parameters if isinstance(attention, nn.Module) else {}
        plain = plain and "attn_mask" in takes and hasattr(attention, "num_heads")
    if not plain or getattr(encoder.model, "rope", None) is not None:
        raise UsageError(f"{setting}: {encoder.model_name} is not a plain vision transformer")
    return blocks


class _Windows:
    """Hooks that split the tokens of a block into windows, and put them back.

    Prefix tokens take part in each window, and are averaged over the windows afterwards.
    """

    def __init__(self, grid: Size, side: int, prefix: int) -> None:
        self.grid, self.side, self.prefix = grid, side, prefix
        self.rows, self.columns = (-(-length // side) for length in grid)
        self.mask: Tensor | None = None
        padded = (self.rows * side, self.columns * side)
        if padded != grid:
            shown = F.pad(torch.ones(1, *grid, 1), (0, 0, 0, padded[1] - grid[1], 0, padded[0] - grid[0]))
            keys = F.pad(self._split(shown)[..., 0], (prefix, 0), value=1.0)
            self.mask = torch.zeros_like(keys).masked_fill(keys == 0, float("-inf"))[:, None, None]

    def enter(self, block: nn.Module, given: Sequence[Any]) -> tuple[Any, ...]:
        tokens = given[0]
        (height, width), side = self.grid, self.side
        prefix, places = tokens[:, : self.prefix], tokens[:, self.prefix :]
        map_ = torch.unflatten(places, 1, (height, width))
        map_ = F.pad(map_, (0, 0, 0, self.columns * side - width, 0, self.rows * side - height))
        count = self.rows * self.columns
        windows = torch.cat([prefix.repeat_interleave(count, 0), self._split(map_)], dim=1)
        return (windows, *given[1:])

    def leave(self, block: nn.Module, given: Sequence[Any], output: Tensor) -> Tensor:
        (height, width), side, count = self.grid, self.side, self.rows * self.columns
        prefix = torch.unflatten(output[:, : self.prefix], 0, (-1, count)).mean(1)
        windows = torch.unflatten(output[:, self.prefix :], 0, (-1, self.rows, self.columns))
        map_ = torch.unflatten(windows, 3, (side, side)).permute(0, 1, 3, 2, 4, 5)
        map_ = map_.flatten(3, 4).flatten(1, 2)[:, :height, :width]
        return torch.cat([prefix, map_.flatten(1, 2)], dim=1)

    def _split(self, map_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) -> (B * windows, side * side, C)."""
        parts = torch.unflatten(map_BHWC, 2, (self.columns, self.side))
        parts = torch.unflatten(parts, 1, (self.rows, self.side))
        return parts.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(0, 2)


class _AddMask:
    """Hook that gives an attention layer its relative positions, and hides padded keys."""

    def __init__(self, mask: Tensor | None) -> None:
        self.mask = mask

    def __call__(
        self, attention: nn.Module, given: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        tokens = given[0]
        total: Tensor | None = None
        table = getattr(attention, TABLE, None)
        if table is not None:
            total = table.get_bias()  # (1, heads, N, N)
        if self.mask is not None:
            self.mask = self.mask.to(tokens.device)
            hidden = self.mask.repeat(len(tokens) // len(self.mask), 1, 1, 1)
            total = hidden if total is None else total + hidden
        if total is not None and tokens.is_floating_point():
            total = total.to(tokens.dtype)
        return given, {**named, "attn_mask": total}
