"""The paper's backbones as it pre-trains them: FastMIM on HOG with table 11's optimiser and schedule.

Every row of a table starts from one of these. Where the paper does not give a decoder (Twins, PVT,
ConvNeXt, CMT), it is Swin-B's.
"""

from dataclasses import replace
from typing import Any

from fastmim.config import PretrainConfig
from fastmim.decoders import DecoderConfig
from fastmim.train.schedules import ScheduleConfig

_HEADS: dict[str, Any] = {"num_heads": [1, 2, 4, 8]}
_NARROW: dict[str, dict[str, Any]] = {
    "vit": {"embed_dim": 32, "num_heads": 2},
    "swin": {"embed_dim": 16} | _HEADS,
    "twins": {"embed_dims": [16, 32, 64, 128]} | _HEADS,
    "pvt": {"embed_dims": [16, 32, 40, 64]},
    "convnext": {"dims": [16, 32, 64, 128]},
    "convnextv2": {"dims": [16, 32, 64, 128]},
    "cmt": {"stem_width": 8, "embed_dims": [16, 32, 64, 128]},
}


def narrow_kwargs(model: str) -> dict[str, Any]:
    """Arguments that make a recipe's backbone narrow and leave its depth and stride as they are."""
    return _NARROW.get(model.split("_")[0], {})


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
    """A hierarchical backbone of stride 32, by timm's name."""
    return replace(vit_b(epochs, size), model=model, decoder=DecoderConfig(depth=4, width=256))


def swin_b(epochs: float, size: int = 128) -> PretrainConfig:
    """Swin-B. Its window follows the size: 4 at 128 (appendix A.3.2; section 4 says 7), 7 at 224."""
    return pyramid("swin_base_patch4_window7_224", epochs, size)


def swin_l(epochs: float, size: int = 128) -> PretrainConfig:
    """Swin-L, window 8 at 128 (appendix A.3.2; section 4 says 14) and in proportion at other sizes.

    The paper's step schedule has no length: here the learning rate falls to a tenth after 7/8 of the epochs.
    """
    return replace(
        pyramid("swin_large_patch4_window7_224", epochs, size),
        model_kwargs={"window_size": size // 16},
        decoder=DecoderConfig(depth=4, width=512),
        schedule=ScheduleConfig(name="step", warmup_epochs=10, decay_epochs=epochs * 7 / 8),
    )
