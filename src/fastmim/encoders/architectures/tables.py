"""Base classes of CMT and PVT: pyramids whose stages hold a learned table for one image size.

At any other size the tables are resampled (bicubic): in each forward pass, or permanently by
`set_input_size`. The models implement timm's model interface.

Letters: B batch, C channels, H W pixels, N tokens, M keys and values, D width, h w positions of a map.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import build_model_with_cfg
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastmim.mim.grids import map_to_tokens, tokens_to_map
from fastmim.system.size import Size

FIRST_STRIDE = 4  # pixels between positions of the first stage's map; each further stage doubles it
UNDECAYED = ("table", "cls_token")
TIMM_CFG = {"crop_pct": 0.9, "first_conv": "stem.0", "classifier": "head"}


def checked_size(img_size: int | Sequence[int], stride: int) -> Size:
    """Return (H, W) for one side or two. Raises ValueError unless both are multiples of the stride."""
    size = (img_size, img_size) if isinstance(img_size, int) else (img_size[0], img_size[1])
    if size[0] % stride or size[1] % stride:
        raise ValueError(f"images of {size[0]}x{size[1]}: both sides must be multiples of {stride} pixels")
    return size


def grid_at(size: Size, stage: int) -> Size:
    """Grid (h, w) of a stage's map for images of ``size``."""
    stride = FIRST_STRIDE * 2**stage
    return size[0] // stride, size[1] // stride


def resample(maps_NChw: Tensor, grid: Size) -> Tensor:
    """Resample maps (N, C, h, w) to (N, C, *grid): bicubic, antialiased, in float32.

    A map that already has that grid is returned unchanged.
    """
    if tuple(maps_NChw.shape[2:]) == tuple(grid):
        return maps_NChw
    resampled = F.interpolate(maps_NChw.float(), size=grid, mode="bicubic", antialias=True)
    return resampled.to(maps_NChw.dtype)


class ReducedAttention(nn.Module):
    """Multi-head attention of all tokens to keys and values from a smaller map, computed by ``reduce``.

    PVT (arXiv 2102.12122, section 3.3) reduces by a strided convolution, CMT (arXiv 2107.06263,
    section 3.2) by a depthwise one.
    """

    def __init__(self, width: int, heads: int, reduce: nn.Module | None) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"a width of {width} is not a multiple of {heads} heads")
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.reduce = reduce
        self.proj = nn.Linear(width, width)

    def forward(self, tokens_BND: Tensor, grid: Size, bias_hNM: Tensor | None = None) -> Tensor:
        """Attend among tokens (B, N, D) on ``grid``; ``bias_hNM`` is added to the attention logits."""
        context_BMD = tokens_BND
        if self.reduce is not None:
            context_BMD = map_to_tokens(self.reduce(tokens_to_map(tokens_BND, grid)))
        q = self._split(self.q(tokens_BND))
        k, v = (self._split(half) for half in self.kv(context_BMD).chunk(2, dim=-1))
        bias = None if bias_hNM is None else bias_hNM.to(q.dtype)[None]  # fused kernels need the batch axis
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        projected: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return projected

    def _split(self, tokens_BND: Tensor) -> Tensor:
        batch, tokens, width = tokens_BND.shape
        return tokens_BND.view(batch, tokens, self.heads, width // self.heads).transpose(1, 2)


class Stage(nn.Module):
    """Stage of downsampling, table and blocks. Takes a map (B, C, H, W); subclasses define the output."""

    downsample: nn.Module
    blocks: nn.ModuleList
    checkpointing = False

    def run_blocks(self, features: Tensor, *others: object) -> Tensor:
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                features = checkpoint(block, features, *others, use_reentrant=False)
            else:
                features = block(features, *others)
        return features

    def set_grid(self, grid: Size) -> None:
        """Replace the stage's table by a new parameter, resampled for maps of ``grid``."""
        raise NotImplementedError


class TablePyramid(nn.Module):
    """Stem, stages and head with timm's interface; a subclass calls `reset_classifier` last in `__init__`."""

    pools: tuple[str, ...] = ("avg", "")
    head: nn.Module

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[Stage],
        in_chans: int,
        embed_dims: Sequence[int],
        drop_rate: float,
    ) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.global_pool = self.pools[0]
        self.stride = FIRST_STRIDE * 2 ** (len(embed_dims) - 1)
        self.stem = stem.apply(initialise)
        self.stages = nn.ModuleList(stages).apply(initialise)
        self.norm: nn.Module = nn.Identity()
        self.num_features = self.head_hidden_size = embed_dims[-1]
        self.feature_info = [
            {"num_chs": width, "reduction": FIRST_STRIDE * 2**index, "module": f"stages.{index}"}
            for index, width in enumerate(embed_dims)
        ]
        self.head_drop = nn.Dropout(drop_rate)

    def forward_features(self, images_BCHW: Tensor) -> Tensor:
        """Features of the last stage after the final norm, if there is one. Raises as `checked_size`."""
        checked_size(images_BCHW.shape[2:], self.stride)
        features: Tensor = self.stem(images_BCHW)
        for stage in (*self.stages, self.norm):
            features = stage(features)
        return features

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Map the output of `forward_features` to logits (B, classes), or to (B, head_hidden_size)."""
        pooled: Tensor = self.head_drop(self.pool(features))
        return pooled if pre_logits else self.head(pooled)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images_BCHW))

    @property
    def num_prefix_tokens(self) -> int:
        """Number of tokens before those of the map in the last features."""
        return 0

    def pool(self, features: Tensor) -> Tensor:
        raise NotImplementedError

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Return final features and maps (B, D, h, w) of the chosen stages, as timm's models do.

        ``norm`` applies the final norm to the last stage's map.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt = {output_fmt!r}: only NCHW is supported")
        taken, last = feature_take_indices(len(self.stages), indices)
        size = checked_size(x.shape[2:], self.stride)
        maps = []
        x = self.stem(x)
        for index, stage in enumerate(self.stages[: last + 1] if stop_early else self.stages):
            x = stage(x)
            normed = self.norm(x) if index == len(self.stages) - 1 else x
            if index in taken:
                maps.append(self._as_map(normed if norm else x, grid_at(size, index)))
        return maps if intermediates_only else (normed, maps)

    def _as_map(self, features: Tensor, grid: Size) -> Tensor:
        return features if features.ndim == 4 else tokens_to_map(features[:, self.num_prefix_tokens :], grid)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages after the last chosen one and, with them, norm and head, as timm's models do."""
        taken, last = feature_take_indices(len(self.stages), indices)
        shortened = last < len(self.stages) - 1
        self.stages = self.stages[: last + 1]
        if shortened:
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if shortened or prune_norm:
            self.norm = nn.Identity()
        if shortened or prune_head:
            self.reset_classifier(0, "")
        kept: list[int] = taken
        return kept

    def set_input_size(self, img_size: int | Sequence[int]) -> None:
        """Replace every table by a resampled parameter for a side or (H, W). Raises as `checked_size`."""
        size = checked_size(img_size, self.stride)
        for index, stage in enumerate(self.stages):
            assert isinstance(stage, Stage)
            stage.set_grid(grid_at(size, index))
        self._traits = {**getattr(self, "_traits", {}), "img_size": size}  # timm reads the size from here

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier; with 0 classes there is none and the model returns pooled features."""
        self.num_classes = num_classes
        if global_pool is not None:
            if global_pool not in self.pools:
                raise ValueError(f"global_pool = {global_pool!r} must be one of {self.pools}")
            self.global_pool = global_pool
        self.head = nn.Identity()
        if num_classes:
            self.head = self.made_new(nn.Linear(self.head_hidden_size, num_classes))

    def made_new(self, module: nn.Module) -> nn.Module:
        """Initialise a module, and move it to the model's device, dtype and training mode."""
        parameter = next(self.parameters())
        return module.apply(initialise).to(parameter.device, parameter.dtype).train(self.training)

    def no_weight_decay(self) -> set[str]:
        """Names of tables and class tokens, as timm excludes them; the papers' texts do not specify this."""
        return {name for name, _ in self.named_parameters() if name.endswith(UNDECAYED)}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Groups for layer-wise learning rates: stem, blocks, head. A table belongs to its first block."""
        blocks = [(r"^stages\.(\d+)\.blocks\.(\d+)", None), (r"^stages\.(\d+)\.", (0,))]
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else blocks}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Enable or disable activation checkpointing of the blocks."""
        for stage in self.stages:
            assert isinstance(stage, Stage)
            stage.checkpointing = enable


def initialise(module: nn.Module) -> None:
    """Draw initial weights: linear layers with 0.02, convolutions scaled by output channels (fan-out).

    By fan-out, depthwise convolutions start near 0: next to a shortcut, as in CMT, larger weights would
    multiply the features in every block.
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
    if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
        nn.init.zeros_(module.bias)


def same_lengths(**by_stage: Sequence[object]) -> None:
    """Raise ValueError unless every argument has one entry per stage."""
    if len({len(entries) for entries in by_stage.values()}) > 1:
        lengths = ", ".join(f"{name} {len(entries)}" for name, entries in by_stage.items())
        raise ValueError(f"one entry a stage is needed, but the lengths are: {lengths}")


def build(model_class: type[TablePyramid], variant: str, pretrained: bool, arguments: dict[str, Any]) -> Any:
    """Build the model, or with ``features_only`` timm's wrapper that returns the maps of the stages."""
    features = {"out_indices": (0, 1, 2, 3), "feature_cls": "getter"}
    return build_model_with_cfg(model_class, variant, pretrained, feature_cfg=features, **arguments)
