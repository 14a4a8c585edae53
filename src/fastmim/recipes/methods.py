"""The methods as their own papers have them.

    fastmim pretrain --method simmim --data imagenet/train --out runs/simmim
    fastmim pretrain --recipe simmim/swin-b --data imagenet/train --out runs/simmim --devices 8

`defaults_of` is what `--method` alone brings; a recipe adds backbone, batch and length, which are as in
FastMIM's table 11, and what a paper leaves open is as there, too.
"""

from collections.abc import Callable
from dataclasses import replace

from fastmim.config import PretrainConfig
from fastmim.data.crops import CropConfig
from fastmim.decoders import DecoderConfig
from fastmim.masking import Masking
from fastmim.methods.catalogue import MethodName
from fastmim.targets import TargetConfig
from fastmim.train.optim import OptimConfig
from fastmim.train.schedules import ScheduleConfig

LINEAR = DecoderConfig(depth=0)
VIT_B = "vit_base_patch16_224"
SWIN_T = "swin_tiny_patch4_window7_224"


def simmim() -> PretrainConfig:
    """SimMIM, Xie et al. 2022: 60 % in squares of 32 pixels, raw pixels under l1, a linear head."""
    return PretrainConfig(
        method="simmim",
        image_size=224,
        mask=Masking(0.6, 32, place="patch"),
        target=TargetConfig("pixels", loss="l1"),
        decoder=LINEAR,
        optim=OptimConfig(base_lr=1e-4, betas=(0.9, 0.999), clip_norm=5.0),
        crop=CropConfig(scale=(0.67, 1.0)),
    )


def maskfeat() -> PretrainConfig:
    """MaskFeat, Wei et al. 2022: 40 % in rectangles, HOG at 224 pixels, a linear head."""
    return PretrainConfig(
        method="maskfeat",
        image_size=224,
        mask=Masking(0.4, place="patch", pattern="blockwise"),
        target=TargetConfig("hog"),
        decoder=LINEAR,
        optim=OptimConfig(base_lr=2e-4, betas=(0.9, 0.999), clip_norm=0.02),
        crop=CropConfig(scale=(0.5, 1.0)),
    )


def mae() -> PretrainConfig:
    """MAE, He et al. 2021: 75 % of the patches are dropped, normalised pixels, a decoder of 8 blocks."""
    return PretrainConfig(
        method="mae",
        image_size=224,
        mask=Masking(0.75),
        target=TargetConfig("pixels-norm"),
        decoder=DecoderConfig(depth=8, width=512),
    )


def lomar() -> PretrainConfig:
    """LoMaR, Chen et al. 2022: 80 % of four windows of 7x7 patches, normalised pixels, a linear head."""
    return replace(mae(), method="lomar", mask=Masking(0.8), decoder=LINEAR)


def ummae() -> PretrainConfig:
    """UM-MAE, Li et al. 2022: one of every 2x2 patches is sampled, a quarter of these masked; Swin at 256."""
    return replace(mae(), method="ummae", model=SWIN_T, image_size=256, mask=Masking(size=16))


DEFAULTS: dict[MethodName, Callable[[], PretrainConfig]] = {
    "fastmim": PretrainConfig,
    "simmim": simmim,
    "maskfeat": maskfeat,
    "mae": mae,
    "lomar": lomar,
    "ummae": ummae,
}


def defaults_of(method: str | None) -> PretrainConfig:
    """What a run begins with that is told its method alone; FastMIM's where there is no such method."""
    return next((make() for name, make in DEFAULTS.items() if name == method), PretrainConfig())


def at_length(config: PretrainConfig, model: str, epochs: float, size: int | None = None) -> PretrainConfig:
    """The same for a backbone, for so many epochs, with table 11's batch and warm-up."""
    return replace(
        config,
        model=model,
        image_size=size or config.image_size,
        epochs=epochs,
        batch_size=2048,
        schedule=ScheduleConfig(name="cosine", warmup_epochs=10),
    )
