"""PVT, a pyramid of transformer stages.

After Wang et al., "Pyramid Vision Transformer: A Versatile Backbone for Dense Prediction without
Convolutions" (ICCV 2021, arXiv 2102.12122). Importing this module registers pvt_tiny, pvt_small, pvt_medium
and pvt_large with timm. (PVT v2 is a different network, and part of timm.)

Features are tokens (B, 1 + h*w, D) with the class token first, as in timm's ViT. The class token has no
position embedding: it is itself learned, and the sum of two learned vectors expresses no more than one.

Letters: B batch, C channels, H W pixels, N tokens, D width, h w positions of a map.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers.drop import DropPath, calculate_drop_path_rates
from timm.layers.mlp import Mlp
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


class Block(nn.Module):
    """Pre-norm block of spatial-reduction attention and MLP (section 3.3): (B, N, D) -> (B, N, D)."""

    def __init__(self, width: int, heads: int, reduction: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        reduce = None
        if reduction > 1:
            strided = nn.Conv2d(width, width, reduction, stride=reduction)
            reduce = nn.Sequential(strided, LayerNorm2d(width))
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = ReducedAttention(width, heads, reduce)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens_BND: Tensor, grid: Size) -> Tensor:
        tokens_BND = tokens_BND + self.drop_path(self.attention(self.norm1(tokens_BND), grid))
        after_BND: Tensor = tokens_BND + self.drop_path(self.mlp(self.norm2(tokens_BND)))
        return after_BND


class PVTStage(Stage):
    """Patch embedding, position embedding, blocks: (B, C, H, W) -> map (B, D, h, w).

    With a class token, the output is tokens (B, 1 + h*w, D).

    ``table`` (1, D, h, w) is the position embedding.
    """

    def __init__(
        self, downsample: nn.Module, width: int, grid: Size, has_cls_token: bool, blocks: list[Block]
    ) -> None:
        super().__init__()
        self.downsample = downsample
        self.table = nn.Parameter(torch.empty(1, width, *grid))
        nn.init.trunc_normal_(self.table, std=0.02)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width)) if has_cls_token else None
        if self.cls_token is not None:
            nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.blocks = nn.ModuleList(blocks)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        embedded: Tensor = self.downsample(features_BCHW)
        grid = (embedded.shape[2], embedded.shape[3])
        tokens_BND = map_to_tokens(embedded + resample(self.table, grid))
        if self.cls_token is None:
            return tokens_to_map(self.run_blocks(tokens_BND, grid), grid)
        cls_token = self.cls_token.expand(len(tokens_BND), -1, -1)
        return self.run_blocks(torch.cat([cls_token, tokens_BND], dim=1), grid)

    @torch.no_grad()
    def set_grid(self, grid: Size) -> None:
        if self.table.shape[2:] != torch.Size(grid):
            self.table = nn.Parameter(resample(self.table, grid), self.table.requires_grad)


class PyramidVisionTransformer(TablePyramid):
    """Map images (B, C, H, W) to tokens (B, 1 + H/32 * W/32, D); H, W must be multiples of 32 (figure 3).

    Args:
        img_size: side or (H, W) for which the position embeddings are created; they are resampled for others.
        global_pool: input of the classifier: "token": the class token; "avg": the mean of the other tokens.
        reductions: for each stage, the reduction of keys and values along an axis; 1 in the last stage.
        mlp_ratios: for each stage, the hidden width of the MLPs relative to the stage's width.
        drop_rate: dropout before the classifier.
    """

    pools = ("token", "avg", "")

    def __init__(  # noqa: PLR0913 - as timm names them
        self,
        img_size: int | Sequence[int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        embed_dims: Sequence[int] = (64, 128, 320, 512),
        depths: Sequence[int] = (3, 4, 6, 3),
        num_heads: Sequence[int] = (1, 2, 5, 8),
        reductions: Sequence[int] = (8, 4, 2, 1),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        same_lengths(
            embed_dims=embed_dims,
            depths=depths,
            num_heads=num_heads,
            reductions=reductions,
            mlp_ratios=mlp_ratios,
        )
        if reductions[-1] != 1:
            raise ValueError(f"reductions = {reductions} must end in 1: the class token is on no map")
        last = len(depths) - 1
        size = checked_size(img_size, FIRST_STRIDE * 2**last)
        rates: Any = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        stages = [
            PVTStage(
                _embedding(embed_dims[i - 1], width, 2) if i else nn.Identity(),
                width,
                grid_at(size, i),
                i == last,
                [Block(width, num_heads[i], reductions[i], mlp_ratios[i], rate) for rate in rates[i]],
            )
            for i, width in enumerate(embed_dims)
        ]
        stem = _embedding(in_chans, embed_dims[0], FIRST_STRIDE)
        super().__init__(stem, stages, in_chans, embed_dims, drop_rate)
        self.norm = nn.LayerNorm(self.num_features, eps=1e-6)
        self.reset_classifier(num_classes, global_pool)

    @property
    def num_prefix_tokens(self) -> int:
        return int(getattr(self.stages[-1], "cls_token", None) is not None)

    def pool(self, features: Tensor) -> Tensor:
        if self.global_pool == "token":
            return features[:, 0]
        return features[:, self.num_prefix_tokens :].mean(dim=1) if self.global_pool else features


def _embedding(in_width: int, width: int, patch: int) -> nn.Sequential:
    """Patch embedding followed by a LayerNorm: (B, C, H, W) -> (B, D, H/patch, W/patch)."""
    return nn.Sequential(nn.Conv2d(in_width, width, patch, stride=patch), LayerNorm2d(width))


default_cfgs = generate_default_cfgs(
    {f"pvt_{size}": TIMM_CFG for size in ("tiny", "small", "medium", "large")}
)


@register_model
def pvt_tiny(pretrained: bool = False, **kwargs: Any) -> Any:
    """PVT-Tiny (table 1)."""
    return build(PyramidVisionTransformer, "pvt_tiny", pretrained, {"depths": (2, 2, 2, 2)} | kwargs)


@register_model
def pvt_small(pretrained: bool = False, **kwargs: Any) -> Any:
    """PVT-Small (table 1)."""
    return build(PyramidVisionTransformer, "pvt_small", pretrained, kwargs)


@register_model
def pvt_medium(pretrained: bool = False, **kwargs: Any) -> Any:
    """PVT-Medium (table 1)."""
    return build(PyramidVisionTransformer, "pvt_medium", pretrained, {"depths": (3, 4, 18, 3)} | kwargs)


@register_model
def pvt_large(pretrained: bool = False, **kwargs: Any) -> Any:
    """PVT-Large (table 1)."""
    return build(PyramidVisionTransformer, "pvt_large", pretrained, {"depths": (3, 8, 27, 3)} | kwargs)
