"""Pre-training settings of the paper's backbones: FastMIM on HOG with table 11's optimiser and schedule.

Every row of a table starts from one of these. Where the paper gives no decoder (Twins, PVT, ConvNeXt, CMT),
Swin-B's is used.
"""

from dataclasses import replace
from typing import Any

from fastmim.config import PretrainConfig
from fastmim.errors import UsageError
from fastmim.mim.settings import DecoderConfig
from fastmim.train.settings import ScheduleConfig
from fastmim.train.stages import parse_stages

_VIT: dict[str, Any] = {"embed_dim": 32, "num_heads": 2}
_SWIN: dict[str, Any] = {"embed_dim": 16, "num_heads": [1, 2, 4, 8]}
_PVT: dict[str, Any] = {"embed_dims": [16, 32, 40, 64]}
_CONVNEXT: dict[str, Any] = {"dims": [16, 32, 64, 128]}
_CMT: dict[str, Any] = {"stem_width": 8, "embed_dims": [16, 32, 64, 128]}
NARROW: dict[str, dict[str, Any]] = {
    "vit_base_patch16_224": _VIT,
    "vit_large_patch16_224": _VIT,
    "swin_tiny_patch4_window7_224": _SWIN,
    "swin_base_patch4_window7_224": _SWIN,
    "swin_large_patch4_window7_224": _SWIN,
    "twins_svt_large": {"embed_dims": [16, 32, 64, 128], "num_heads": [1, 2, 4, 8]},
    "pvt_large": _PVT,
    "pvt_v2_b2": _PVT,
    "pvt_v2_b5": _PVT,
    "convnext_tiny": _CONVNEXT,
    "convnext_base": _CONVNEXT,
    "convnextv2_base": _CONVNEXT,
    "cmt_s": _CMT,
    "cmt_b": _CMT,
}


def narrow_kwargs(model: str) -> dict[str, Any]:
    """Return arguments that make a recipe's backbone narrow and keep its depth and stride.

    Raises:
        UsageError: no recipe has this backbone.
    """
    if model not in NARROW:
        raise UsageError(f"smoke: {model} is the backbone of no recipe; these are: {', '.join(NARROW)}")
    return NARROW[model]


def in_stages(config: PretrainConfig, stages: str) -> PretrainConfig:
    """Return the same run in stages of growing image size (FastMIM-P)."""
    return replace(config, image_size=None, epochs=None, stages=parse_stages(stages))


def vit_b(epochs: float, size: int = 128) -> PretrainConfig:
    """ViT-B/16 with the paper's decoder of one block (table 16)."""
    return PretrainConfig(
        model="vit_base_patch16_224",
        image_size=size,
        epochs=epochs,
        batch_size=2048,
        decoder=DecoderConfig(depth=1, width=256),
        schedule=ScheduleConfig(name="cosine", warmup_epochs=10),
    )


def vit_l(epochs: float, size: int = 128) -> PretrainConfig:
    """ViT-L/16."""
    config = vit_b(epochs, size)
    return replace(config, model="vit_large_patch16_224", decoder=DecoderConfig(depth=8, width=512))


def pyramid(model: str, epochs: float, size: int = 128) -> PretrainConfig:
    """A hierarchical backbone of stride 32, by its timm name."""
    return replace(vit_b(epochs, size), model=model, decoder=DecoderConfig(depth=4, width=256))


def swin_b(epochs: float, size: int = 128) -> PretrainConfig:
    """Swin-B. Its window follows the size: 4 at 128 (appendix A.3.2; section 4 says 7), 7 at 224."""
    return pyramid("swin_base_patch4_window7_224", epochs, size)


def swin_l(epochs: float, size: int = 128) -> PretrainConfig:
    """Swin-L, window 8 at 128 (appendix A.3.2; section 4 says 14) and in proportion at other sizes.

    The paper gives no step for its schedule; here the learning rate falls to a tenth after 7/8 of the epochs.
    """
    return replace(
        pyramid("swin_large_patch4_window7_224", epochs, size),
        model_kwargs={"window_size": size // 16},
        decoder=DecoderConfig(depth=4, width=512),
        schedule=ScheduleConfig(name="step", warmup_epochs=10, decay_epochs=epochs * 7 / 8),
    )
