"""Settings of masks, targets and decoders. This module needs no torch."""

from dataclasses import dataclass
from typing import Literal

from fastmim.errors import UsageError

Pattern = Literal["random", "blockwise"]
TargetName = Literal["hog", "pixels", "pixels-norm", "hog+pixels", "hog+pixels-norm"]
LossName = Literal["l2", "l1", "smooth-l1", "cosine"]

HEAD_WIDTH = 32
MOST_DEPTH, MOST_WIDTH = 256, 1 << 16


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
    pattern: Pattern = "random"
    """Blocks drawn one by one, or in BEiT's rectangles until there are enough of them."""

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise UsageError(f"mask.ratio = {self.ratio} must lie between 0 and 1, both excluded")
        if self.size is not None and self.size < 1:
            raise UsageError(f"mask.size = {self.size} must be at least 1 pixel")


@dataclass(frozen=True)
class TargetConfig:
    """What the model predicts in the masked region."""

    name: TargetName = "hog"
    """HOG features, raw pixels, pixels normalised per patch (of the encoder's stride), or two at once."""
    bins: int = 9
    """Orientation bins of HOG over 0..pi."""
    cell: int | None = None
    """Side of a HOG cell, in pixels. Default: 8, or the largest divisor of the encoder's stride below."""
    normalize: bool = True
    """Scale each HOG histogram to unit L2 norm."""
    pixel_weight: float = 1.0
    """Weight of the pixel loss beside HOG's, for hog+pixels and hog+pixels-norm."""
    loss: LossName = "l2"
    """How prediction and target are compared, on masked cells only."""

    def __post_init__(self) -> None:
        if self.bins < 1:
            raise UsageError(f"target.bins = {self.bins} must be at least 1")
        if self.cell is not None and self.cell < 1:
            raise UsageError(f"target.cell = {self.cell} must be at least 1 pixel")
        if self.pixel_weight <= 0:
            raise UsageError(f"target.pixel_weight = {self.pixel_weight} must be above 0")


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
        if self.depth > MOST_DEPTH or self.width > MOST_WIDTH:
            raise UsageError(
                f"decoder.depth = {self.depth}, decoder.width = {self.width} must be at most {MOST_DEPTH} "
                f"blocks of {MOST_WIDTH}"
            )
        if self.depth and (self.width < HEAD_WIDTH or self.width % HEAD_WIDTH):
            raise UsageError(f"decoder.width = {self.width} must be a multiple of {HEAD_WIDTH}")
