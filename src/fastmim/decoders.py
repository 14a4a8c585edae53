"""The small decoder: tokens -> width d -> b transformer blocks -> LayerNorm -> linear prediction."""

from dataclasses import dataclass

from timm.models._manipulate import checkpoint_seq
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from fastmim.errors import UsageError
from fastmim.grids import map_to_tokens, tokens_to_map

HEAD_WIDTH = 32


@dataclass(frozen=True)
class DecoderConfig:
    """The decoder, which is thrown away after pre-training (paper: table 16)."""

    depth: int = 1
    """Transformer blocks. Paper: 1 for ViT-B, 4 for Swin-B/L, 8 for ViT-L; 0: LayerNorm and linear only."""
    width: int = 256
    """Channels of a token in the decoder (not used at depth 0); a head takes 32 of them."""

    def __post_init__(self) -> None:
        if self.depth < 0:
            raise UsageError(f"decoder.depth = {self.depth} must be 0 or more blocks")
        if self.depth and (self.width < HEAD_WIDTH or self.width % HEAD_WIDTH):
            raise UsageError(f"decoder.width = {self.width} must be a multiple of {HEAD_WIDTH}")


class Decoder(nn.Module):
    """Features (B, D, h, w) -> predictions per token (B, out, h, w)."""

    def __init__(self, config: DecoderConfig, in_width: int, out_channels: int) -> None:
        super().__init__()
        width = config.width if config.depth else in_width
        self.embed = nn.Linear(in_width, width) if config.depth else nn.Identity()
        self.blocks = nn.Sequential(
            *(Block(width, width // HEAD_WIDTH, qkv_bias=True) for _ in range(config.depth))
        )
        self.norm = nn.LayerNorm(width)
        self.predict = nn.Linear(width, out_channels)
        self.checkpointing = False
        self.apply(_initialise)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep of each block its input only, as timm's models do after the call of this name."""
        self.checkpointing = enable

    def forward(self, features_BDhw: Tensor) -> Tensor:
        grid = (features_BDhw.shape[2], features_BDhw.shape[3])
        tokens_BND = self.embed(map_to_tokens(features_BDhw))
        if self.checkpointing:
            tokens_BND = checkpoint_seq(self.blocks, tokens_BND)
        else:
            tokens_BND = self.blocks(tokens_BND)
        predictions: Tensor = self.predict(self.norm(tokens_BND))
        return tokens_to_map(predictions, grid)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)  # first predictions near zero, as HOG itself is
        if module.bias is not None:
            nn.init.zeros_(module.bias)
