"""Lightweight decoders: tokens -> width d -> b transformer blocks -> LayerNorm -> linear prediction.

`Decoder` receives a feature for every position. The filling decoders insert mask tokens at the positions that
were not encoded, and mix positions by attention or by convolutions.
"""

import torch
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models import checkpoint_seq
from timm.models.convnext import ConvNeXtBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from fastmim.errors import UsageError
from fastmim.mim.grids import map_to_tokens, put_tokens, take_tokens, tokens_to_map
from fastmim.mim.settings import HEAD_WIDTH, DecoderConfig
from fastmim.system.size import Size


class Blocks(nn.Sequential):
    """Transformer blocks in sequence, optionally with activation checkpointing."""

    checkpointing = False
    """Whether each block stores only its input and recomputes its activations in the backward pass."""

    def forward(self, tokens_BNd: Tensor) -> Tensor:
        if self.checkpointing:
            again: Tensor = checkpoint_seq(self, tokens_BNd)
            return again
        for block in self:
            tokens_BNd = block(tokens_BNd)
        return tokens_BNd


def checkpoint_blocks(module: nn.Module) -> None:
    """Turn on activation checkpointing in the decoders of ``module``: less memory, more computation."""
    for part in module.modules():
        if isinstance(part, Blocks):
            part.checkpointing = True


class Decoder(nn.Module):
    """Map features (B, D, h, w) to predictions per token (B, out, h, w)."""

    def __init__(self, config: DecoderConfig, in_width: int, out_channels: int) -> None:
        super().__init__()
        width = config.width if config.depth else in_width
        self.embed = nn.Linear(in_width, width) if config.depth else nn.Identity()
        self.blocks = _blocks(config.depth, width)
        self.norm = nn.LayerNorm(width)
        self.predict = nn.Linear(width, out_channels)
        self.apply(_initialise)

    @property
    def choosing_pays(self) -> bool:
        """Whether predicting only the masked tokens saves time: true where the output per token is large.

        Otherwise, selecting the tokens costs more than the predictions that it saves.
        """
        return self.predict.out_features >= self.predict.in_features

    def forward(
        self, features_BDhw: Tensor, wanted_BK: Tensor | None = None, prefix_BPD: Tensor | None = None
    ) -> Tensor:
        """Predict all tokens or the selected ones.

        Args:
            features_BDhw: features of the encoder.
            wanted_BK: row-major indices of the tokens to predict; the others become 0. None: all.
            prefix_BPD: class token and registers, which take part in the blocks' attention.
        """
        grid = (features_BDhw.shape[2], features_BDhw.shape[3])
        tokens_BNd = map_to_tokens(features_BDhw)
        prefix = 0
        if prefix_BPD is not None and len(self.blocks):  # without blocks, tokens do not interact
            prefix = prefix_BPD.shape[1]
            tokens_BNd = torch.cat([prefix_BPD, tokens_BNd], dim=1)
        tokens_BNd = self.blocks(self.embed(tokens_BNd))[:, prefix:]
        if wanted_BK is not None:
            tokens_BNd = take_tokens(tokens_BNd, wanted_BK)
        predictions: Tensor = self.predict(self.norm(tokens_BNd))
        if wanted_BK is not None:
            nothing = predictions.new_zeros(predictions.shape[2])
            predictions = put_tokens(predictions, wanted_BK, nothing, grid[0] * grid[1])
        return tokens_to_map(predictions, grid)


def add_mask_token(module: nn.Module, shape: tuple[int, ...], learned: bool) -> None:
    """Add ``module.mask_token``: a learned parameter or a buffer of zeros (paper: table 10a)."""
    token = torch.zeros(shape)
    if learned:
        module.mask_token = nn.Parameter(token.normal_(std=0.02))
    else:
        module.register_buffer("mask_token", token)


class FillingDecoder(nn.Module):
    """Predict all positions (B, out, h, w) from the features of some; the others get a mask token.

    Position embeddings are fixed 2-D sine-cosine ones (MAE, He et al. 2021).

    Args:
        config: decoder settings; the depth must be at least 1, since positions exchange information in blocks
            only.
        out_channels: output channels per position.
        learned: whether the mask token is learned or zeros (paper: table 10a).
    """

    mask_token: Tensor

    def __init__(self, config: DecoderConfig, out_channels: int, learned: bool) -> None:
        super().__init__()
        _check_fills(config)
        self.blocks = _blocks(config.depth, config.width)
        self.norm = nn.LayerNorm(config.width)
        self.predict = nn.Linear(config.width, out_channels)
        self.apply(_initialise)
        add_mask_token(self, (config.width,), learned)

    def forward(
        self, tokens_BKd: Tensor, places_BK: Tensor, grid: Size, prefix_BPd: Tensor | None = None
    ) -> Tensor:
        """Insert mask tokens, decode, and predict every position of ``grid``.

        Args:
            tokens_BKd: features at the decoder's width.
            places_BK: row-major indices of these features on the grid.
            grid: (h, w) of the predictions.
            prefix_BPd: class token and registers, which have no position on the grid.
        """
        count = grid[0] * grid[1]
        tokens = put_tokens(tokens_BKd, places_BK, self.mask_token, count)
        positions_Nd = build_sincos2d_pos_embed(
            list(grid), dim=tokens.shape[2], dtype=torch.float32, device=tokens.device
        )
        tokens = tokens + positions_Nd
        if prefix_BPd is not None:
            tokens = torch.cat([prefix_BPd, tokens], dim=1)
        predictions: Tensor = self.predict(self.norm(self.blocks(tokens)))
        return tokens_to_map(predictions[:, -count:], grid)


class ConvFillingDecoder(nn.Module):
    """`FillingDecoder` with ConvNeXt V2 blocks, which need no position embedding (FCMAE, Woo et al. 2023)."""

    mask_token: Tensor

    def __init__(self, config: DecoderConfig, out_channels: int, learned: bool) -> None:
        super().__init__()
        _check_fills(config)
        width = config.width
        self.blocks = nn.Sequential(
            *(ConvNeXtBlock(width, use_grn=True, ls_init_value=None) for _ in range(config.depth))
        )
        self.predict = nn.Linear(width, out_channels)
        self.apply(_initialise)
        add_mask_token(self, (width,), learned)

    def forward(self, tokens_BKd: Tensor, places_BK: Tensor, grid: Size) -> Tensor:
        tokens = put_tokens(tokens_BKd, places_BK, self.mask_token, grid[0] * grid[1])
        features_Bdhw = self.blocks(tokens_to_map(tokens, grid))
        return tokens_to_map(self.predict(map_to_tokens(features_Bdhw)), grid)


def _check_fills(config: DecoderConfig) -> None:
    if not config.depth:
        raise UsageError(
            "decoder.depth = 0: a decoder that fills in what was not encoded needs at least 1 block"
        )


def _blocks(depth: int, width: int) -> Blocks:
    return Blocks(*(Block(width, width // HEAD_WIDTH, qkv_bias=True) for _ in range(depth)))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)  # initial predictions near zero, like HOG values
        if module.bias is not None:
            nn.init.zeros_(module.bias)
