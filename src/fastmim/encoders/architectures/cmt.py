"""CMT, a pyramid of blocks with convolutions and reduced attention.

After Guo et al., "CMT: Convolutional Neural Networks Meet Vision Transformers" (CVPR 2022, arXiv 2107.06263).
Importing this module registers cmt_ti, cmt_xs, cmt_s and cmt_b with timm.

The paper's text leaves some choices open. Here, activations precede their batch norms; the position bias is
one learned value per head, query and key, shared by the blocks of a stage; the projection of the head
precedes the pooling, with batch norm and SiLU. With these choices, Ti, XS and B have the paper's
9.5 M, 15.2 M and 45.7 M parameters at the paper's image sizes (160, 192, 256). S would have 26.3 M at 224
where the paper states 25.1 M; a head of 512 instead of 1280 channels gives that number and is the default of
S (``head_width``).

Letters: B batch, C channels, H W pixels, N tokens, M keys and values, D width, h w positions of a map.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers.drop import DropPath, calculate_drop_path_rates
from timm.layers.norm import LayerNorm2d
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from fastmim.encoders.architectures.tables import (
    FIRST_STRIDE,
    TIMM_CFG,
    ReducedAttention,
    Stage,
    TablePyramid,
    build,
    checked_size,
    grid_at,
    resample,
    same_lengths,
)
from fastmim.mim.grids import map_to_tokens, tokens_to_map
from fastmim.system.size import Size


class InvertedResidual(nn.Module):
    """IRFFN: expand, depthwise 3x3 with a shortcut, project (section 3.2): (B, D, h, w) -> (B, D, h, w)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(width, hidden, 1), nn.GELU(), nn.BatchNorm2d(hidden))
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.activate = nn.Sequential(nn.GELU(), nn.BatchNorm2d(hidden))
        self.project = nn.Sequential(nn.Conv2d(hidden, width, 1), nn.BatchNorm2d(width))

    def forward(self, features_BDhw: Tensor) -> Tensor:
        hidden = self.expand(features_BDhw)
        projected: Tensor = self.project(self.activate(hidden + self.depthwise(hidden)))
        return projected


class Block(nn.Module):
    """LPU, LMHSA and IRFFN, each with a shortcut (section 3.2): (B, D, h, w) -> (B, D, h, w)."""

    def __init__(self, width: int, heads: int, reduction: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        reduce = None
        if reduction > 1:
            depthwise = nn.Conv2d(width, width, reduction, stride=reduction, groups=width)
            reduce = nn.Sequential(depthwise, nn.BatchNorm2d(width))
        self.local = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = ReducedAttention(width, heads, reduce)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.feed_forward = InvertedResidual(width, int(width * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, features_BDhw: Tensor, bias_hNM: Tensor) -> Tensor:
        grid = (features_BDhw.shape[2], features_BDhw.shape[3])
        tokens_BND = map_to_tokens(features_BDhw + self.local(features_BDhw))
        tokens_BND = tokens_BND + self.drop_path(self.attention(self.norm1(tokens_BND), grid, bias_hNM))
        fed: Tensor = self.drop_path(self.feed_forward(tokens_to_map(self.norm2(tokens_BND), grid)))
        return tokens_to_map(tokens_BND, grid) + fed


class CMTStage(Stage):
    """Patch embedding of 2x2 positions, then blocks: (B, C, H, W) -> (B, D, H/2, W/2).

    ``table`` (heads, h, w, h/k, w/k) is the position bias of each query and key; a stage without blocks
    has none.
    """

    table: nn.Parameter | None

    def __init__(
        self, in_width: int, width: int, heads: int, reduction: int, grid: Size, blocks: list[Block]
    ) -> None:
        super().__init__()
        self.reduction = reduction
        self.downsample = nn.Sequential(nn.Conv2d(in_width, width, 2, stride=2), LayerNorm2d(width))
        self.blocks = nn.ModuleList(blocks)
        self.table = None
        if len(self.blocks):
            self.table = nn.Parameter(torch.empty(heads, *grid, *self._keys(grid)))
            nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        features_BDhw: Tensor = self.downsample(features_BCHW)
        if self.table is None:
            return features_BDhw
        bias = self._table_at((features_BDhw.shape[2], features_BDhw.shape[3]))
        return self.run_blocks(features_BDhw, bias.flatten(3).flatten(1, 2))

    @torch.no_grad()
    def set_grid(self, grid: Size) -> None:
        if self.table is not None and self.table.shape[1:3] != torch.Size(grid):
            self.table = nn.Parameter(self._table_at(grid).contiguous(), self.table.requires_grad)

    def _keys(self, grid: Size) -> Size:
        return grid[0] // self.reduction, grid[1] // self.reduction

    def _table_at(self, grid: Size) -> Tensor:
        """Return the table for maps of ``grid``, resampled along its queries, then along its keys."""
        assert self.table is not None
        if self.table.shape[1:3] == torch.Size(grid):
            return self.table
        by_query = resample(self.table.flatten(3).permute(0, 3, 1, 2), grid)
        heads, keys = len(self.table), self.table.shape[3:]
        by_key = by_query.flatten(2).transpose(1, 2).reshape(heads, -1, *keys)
        return resample(by_key, self._keys(grid)).reshape(heads, *grid, *self._keys(grid))


class CMT(TablePyramid):
    """Map images (B, C, H, W) to features (B, D, H/32, W/32); H, W must be multiples of 32 (figure 2c).

    Args:
        img_size: side or (H, W) for which the tables are created; they are resampled for other sizes.
        stem_width: channels of the three convolutions before the first stage.
        reductions: for each stage, the reduction k of keys and values along an axis.
        head_width: channels of the projection before the classifier; without a classifier there is none.
        drop_rate: dropout before the classifier (the released training code uses 0.1, and 0.3 for B).
    """

    def __init__(  # noqa: PLR0913 - as timm names them
        self,
        img_size: int | Sequence[int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        stem_width: int = 32,
        embed_dims: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (3, 3, 16, 3),
        num_heads: Sequence[int] = (1, 2, 4, 8),
        reductions: Sequence[int] = (8, 4, 2, 1),
        mlp_ratio: float = 4.0,
        head_width: int = 1280,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        same_lengths(embed_dims=embed_dims, depths=depths, num_heads=num_heads, reductions=reductions)
        size = checked_size(img_size, FIRST_STRIDE * 2 ** (len(depths) - 1))
        rates: Any = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        widths = [stem_width, *embed_dims]
        stages = [
            CMTStage(
                widths[i],
                widths[i + 1],
                num_heads[i],
                reductions[i],
                grid_at(size, i),
                [Block(widths[i + 1], num_heads[i], reductions[i], mlp_ratio, rate) for rate in rates[i]],
            )
            for i in range(len(depths))
        ]
        super().__init__(_stem(in_chans, stem_width), stages, in_chans, embed_dims, drop_rate)
        self.head_width = head_width
        self.project: nn.Module = nn.Identity()
        self.reset_classifier(num_classes, global_pool)

    def pool(self, features: Tensor) -> Tensor:
        projected: Tensor = self.project(features)
        return projected.mean(dim=(2, 3)) if self.global_pool else projected

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier and add the projection before it, if missing; 0 classes remove both."""
        if not num_classes:
            self.project = nn.Identity()
            self.head_hidden_size = self.num_features
        elif isinstance(self.project, nn.Identity):
            width = self.head_hidden_size = self.head_width
            convolution = nn.Conv2d(self.num_features, width, 1)
            self.project = self.made_new(nn.Sequential(convolution, nn.BatchNorm2d(width), nn.SiLU()))
        super().reset_classifier(num_classes, global_pool)


def _stem(in_chans: int, width: int) -> nn.Sequential:
    """Three 3x3 convolutions, the first with stride 2: (B, C, H, W) -> (B, width, H/2, W/2)."""
    layers: list[nn.Module] = []
    for channels, stride in ((in_chans, 2), (width, 1), (width, 1)):
        layers += [nn.Conv2d(channels, width, 3, stride, padding=1), nn.GELU(), nn.BatchNorm2d(width)]
    return nn.Sequential(*layers)


default_cfgs = generate_default_cfgs({f"cmt_{size}": TIMM_CFG for size in ("ti", "xs", "s", "b")})


@register_model
def cmt_ti(pretrained: bool = False, **kwargs: Any) -> Any:
    """CMT-Ti (table 1)."""
    published = {
        "stem_width": 16,
        "embed_dims": (46, 92, 184, 368),
        "depths": (2, 2, 10, 2),
        "mlp_ratio": 3.6,
    }
    return build(CMT, "cmt_ti", pretrained, published | kwargs)


@register_model
def cmt_xs(pretrained: bool = False, **kwargs: Any) -> Any:
    """CMT-XS (table 1; its MLP ratio of 3.8 is a rounded 3.77, which gives the paper's parameter count)."""
    published = {
        "stem_width": 16,
        "embed_dims": (52, 104, 208, 416),
        "depths": (3, 3, 12, 3),
        "mlp_ratio": 3.77,
    }
    return build(CMT, "cmt_xs", pretrained, published | kwargs)


@register_model
def cmt_s(pretrained: bool = False, **kwargs: Any) -> Any:
    """CMT-S (table 1, except for the head: 512 channels give the paper's 25.1 M parameters)."""
    return build(CMT, "cmt_s", pretrained, {"head_width": 512} | kwargs)


@register_model
def cmt_b(pretrained: bool = False, **kwargs: Any) -> Any:
    """CMT-B (table 1)."""
    published = {
        "stem_width": 38,
        "embed_dims": (76, 152, 304, 608),
        "depths": (4, 4, 20, 4),
    }
    return build(CMT, "cmt_b", pretrained, published | kwargs)
