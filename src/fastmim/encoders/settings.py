"""Settings of the backbone. This module needs no torch."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from fastmim.errors import UsageError
from fastmim.system.bounds import check_bounds

Initial = Literal["timm", "xavier"]
MOST_WINDOW = 256


@dataclass(frozen=True)
class EncoderConfig:
    """Setup of the backbone for pre-training; its architecture is never changed."""

    pos_embed: Literal["sincos", "learned"] = "sincos"
    """Absolute position embedding of a plain ViT: fixed 2-D sine-cosine or learned. Others have none."""
    init: Initial = "xavier"
    """Initial weights: xavier draws linear layers and the patch embedding as in the released code of FastMIM
    and MAE; timm keeps timm's. Modules and loaded weights keep their values."""
    table_window: Annotated[int, Field(ge=1, le=MOST_WINDOW)] | None = None
    """Learn relative position tables (Swin) for a window of this many tokens a side at every image size; each
    forward pass interpolates them (paper: appendix A.3.2, 14 for Swin-L). Default: tables of the image's
    window, resampled where a stage changes the size."""
    depth: int | tuple[int, ...] | None = None
    """Blocks to pre-train (10), or blocks of each stage (2 2 18 0): the last ones are omitted, and drawn when
    the weights are loaded (paper: table 1c). Default: all."""

    def __post_init__(self) -> None:
        check_bounds(self, "encoder")
        depths = (self.depth,) if isinstance(self.depth, int) else self.depth or (1,)
        if min(depths) < 0 or max(depths) < 1:
            raise UsageError(f"encoder.depth = {self.depth} must be at least 1 block in all")
