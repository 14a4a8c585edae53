"""Settings of masks, targets and decoders. This module needs no torch."""

from dataclasses import dataclass, fields
from typing import Annotated, Literal

from pydantic import Field

from fastmim.errors import UsageError
from fastmim.system.bounds import PositiveFloat, PositiveInt, Share, check_bounds

Pattern = Literal["random", "blockwise"]
TargetName = Literal["hog", "pixels", "pixels-norm", "hog+pixels", "hog+pixels-norm"]
LossName = Literal["l2", "l1", "smooth-l1", "cosine"]

HEAD_WIDTH = 32
MOST_DEPTH, MOST_WIDTH = 256, 1 << 16


@dataclass(frozen=True)
class Masking:
    """Mask of the encoder's input: ratio, block size, pattern and mask token."""

    ratio: Share = 0.75
    """Share of masked blocks, between 0 and 1."""
    size: PositiveInt | None = None
    """Side of a masked block, in pixels. Default: the encoder's stride (ViT-B/16: 16, Swin: 32)."""
    token: Literal["learned", "zeros"] = "learned"
    """Mask token that replaces masked positions: one learned value per channel, or zeros."""
    place: Literal["image", "patch"] = "image"
    """Where the mask token is inserted: into the pixels of the image, or into the output tokens of the patch
    embedding (paper: table 10a)."""
    pattern: Pattern = "random"
    """Draw blocks individually (random), or in BEiT's rectangles until the ratio is reached (blockwise)."""

    def __post_init__(self) -> None:
        check_bounds(self, "mask")


HOG = ("bins", "cell", "normalize")
TARGET_SETTINGS: dict[TargetName, tuple[str, ...]] = {
    "hog": HOG,
    "pixels": (),
    "pixels-norm": (),
    "hog+pixels": (*HOG, "pixel_weight"),
    "hog+pixels-norm": (*HOG, "pixel_weight"),
}
"""Settings that each target uses, apart from its name and the loss."""


@dataclass(frozen=True)
class TargetConfig:
    """Prediction target in the masked region, and its loss."""

    name: TargetName = "hog"
    """HOG features, raw pixels, pixels normalised per patch (of the encoder's stride), or HOG and pixels."""
    bins: PositiveInt = 9
    """Orientation bins of HOG over 0..pi."""
    cell: PositiveInt | None = None
    """Side of a HOG cell, in pixels. Default: 8, or the largest divisor of the encoder's stride below 8."""
    normalize: bool = True
    """Scale each HOG histogram to unit L2 norm."""
    pixel_weight: PositiveFloat = 1.0
    """Weight of the pixel loss relative to the HOG loss, for hog+pixels and hog+pixels-norm."""
    loss: LossName = "l2"
    """Distance between prediction and target, on masked cells only."""

    def __post_init__(self) -> None:
        check_bounds(self, "target")
        for setting in fields(self):
            value = getattr(self, setting.name)
            if setting.name not in ("name", "loss", *TARGET_SETTINGS[self.name]) and value != setting.default:
                given = f"target.{setting.name} = {value!r}"
                raise UsageError(f"{given}: target.name = {self.name} does not use it; leave it out")

    @property
    def uses_cell(self) -> bool:
        """Whether ``cell`` has an effect: a part of the target is HOG."""
        return "cell" in TARGET_SETTINGS[self.name]


@dataclass(frozen=True)
class DecoderConfig:
    """Decoder, which is discarded after pre-training (paper: table 16)."""

    depth: Annotated[int, Field(ge=0, le=MOST_DEPTH)] = 1
    """Transformer blocks. Paper: 1 for ViT-B, 4 for Swin-B/L, 8 for ViT-L; 0: only LayerNorm and linear."""
    width: Annotated[int, Field(le=MOST_WIDTH)] = 256
    """Channels of a token in the decoder (unused at depth 0), 32 for each attention head."""

    def __post_init__(self) -> None:
        check_bounds(self, "decoder")
        if self.depth and (self.width < HEAD_WIDTH or self.width % HEAD_WIDTH):
            raise UsageError(f"decoder.width = {self.width} must be a multiple of {HEAD_WIDTH}")
