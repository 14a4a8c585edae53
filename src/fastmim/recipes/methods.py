"""Settings of the methods in their own papers.

    fastmim pretrain --method simmim --data imagenet/train --out runs/simmim
    fastmim pretrain --recipe simmim/swin-b --data imagenet/train --out runs/simmim --devices 8

`defaults_of` returns the settings for `--method` alone; a recipe adds backbone, batch and length. Batch and
warm-up are those of FastMIM's table 11, and epochs those of its tables 3 and 4 (for UM-MAE, which is in
neither, its authors'), so that methods can be compared; docs/methods.md also lists the authors' own values.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from inspect import getdoc
from typing import Any

from fastmim.config import PretrainConfig
from fastmim.data.settings import CropConfig
from fastmim.encoders.settings import EncoderConfig
from fastmim.methods.settings import MethodName
from fastmim.mim.settings import DecoderConfig, Masking, TargetConfig
from fastmim.recipes.definition import NO_FIGURE, Recipe
from fastmim.train.settings import OptimConfig, ScheduleConfig

LINEAR = DecoderConfig(depth=0)
TIMMS = EncoderConfig(init="timm")  # closest to implementations that draw truncated normals
VIT_B = "vit_base_patch16_224"
VIT_L = "vit_large_patch16_224"
SWIN_T = "swin_tiny_patch4_window7_224"
SWIN_B = "swin_base_patch4_window7_224"
SWIN_L = "swin_large_patch4_window7_224"
CONVNEXT_V2_B = "convnextv2_base"


def simmim() -> PretrainConfig:
    """SimMIM, Xie et al. 2022: 60 % in squares of 32 pixels, raw pixels under l1, a linear head."""
    return PretrainConfig(
        method="simmim",
        image_size=224,
        encoder=TIMMS,
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
        encoder=TIMMS,
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
    mask, decoder = Masking(size=16), DecoderConfig(depth=2, width=512)
    return replace(mae(), method="ummae", model=SWIN_T, image_size=256, mask=mask, decoder=decoder)


def greenmim() -> PretrainConfig:
    """GreenMIM, Huang et al. 2022: 75 % in blocks of 32 pixels, the same in a batch, a decoder of 1 block."""
    decoder, optim = DecoderConfig(depth=1, width=512), OptimConfig(base_lr=1e-4)
    return replace(mae(), method="greenmim", model=SWIN_B, decoder=decoder, optim=optim)


def fcmae() -> PretrainConfig:
    """FCMAE, Woo et al. 2023: 60 % in blocks of 32 pixels, a decoder of one ConvNeXt block; ConvNeXt V2."""
    decoder = DecoderConfig(depth=1, width=512)
    model, mask = CONVNEXT_V2_B, Masking(0.6)
    return replace(mae(), method="fcmae", model=model, encoder=TIMMS, mask=mask, decoder=decoder)


DEFAULTS: dict[MethodName, Callable[[], PretrainConfig]] = {
    "fastmim": PretrainConfig,
    "simmim": simmim,
    "maskfeat": maskfeat,
    "mae": mae,
    "lomar": lomar,
    "ummae": ummae,
    "greenmim": greenmim,
    "fcmae": fcmae,
}


def defaults_of(method: str | None) -> PretrainConfig:
    """Return the default settings of a method, or FastMIM's if there is no such method."""
    return next((make() for name, make in DEFAULTS.items() if name == method), PretrainConfig())


def at_length(config: PretrainConfig, model: str, epochs: float, size: int | None = None) -> PretrainConfig:
    """Set backbone, epochs and image size, with table 11's batch and warm-up."""
    return replace(
        config,
        model=model,
        image_size=size or config.image_size,
        epochs=epochs,
        batch_size=2048,
        schedule=ScheduleConfig(name="cosine", warmup_epochs=10),
    )


def mae_vit_b_8b512d() -> PretrainConfig:
    """MAE, ViT-B, with a decoder of 8 blocks."""
    return at_length(mae(), VIT_B, 1600)


def mae_vit_b_1b512d() -> PretrainConfig:
    """MAE, ViT-B, with a decoder of a single block."""
    return replace(at_length(mae(), VIT_B, 800), decoder=DecoderConfig(depth=1, width=512))


def mae_vit_l_8b512d() -> PretrainConfig:
    """MAE, ViT-L, with a decoder of 8 blocks."""
    return at_length(mae(), VIT_L, 1600)


def long_simmim(model: str, size: int) -> PretrainConfig:
    """SimMIM for 800 epochs; the learning rate falls to a tenth after 700."""
    config = at_length(simmim(), model, 800, size)
    schedule = replace(config.schedule, name="step", decay_epochs=700)
    return replace(config, schedule=schedule, optim=replace(config.optim, base_lr=5e-5))


def simmim_vit_b() -> PretrainConfig:
    """SimMIM, ViT-B at 224 pixels."""
    return long_simmim(VIT_B, 224)


def simmim_swin_b() -> PretrainConfig:
    """SimMIM, Swin-B at 192 pixels, window 6."""
    return long_simmim(SWIN_B, 192)


def simmim_swin_l() -> PretrainConfig:
    """SimMIM, Swin-L at 192 pixels, window 12."""
    return replace(long_simmim(SWIN_L, 192), model_kwargs={"window_size": 12})


def maskfeat_vit_b() -> PretrainConfig:
    """MaskFeat, ViT-B at 224 pixels."""
    return at_length(maskfeat(), VIT_B, 800)


def lomar_vit_b() -> PretrainConfig:
    """LoMaR, ViT-B at 224 pixels, with the backbone's position embeddings instead of relative ones."""
    return at_length(lomar(), VIT_B, 800)


def ummae_swin_t() -> PretrainConfig:
    """UM-MAE, Swin-T at 256 pixels, window 8."""
    return replace(at_length(ummae(), SWIN_T, 200), model_kwargs={"window_size": 8})


def greenmim_swin_b() -> PretrainConfig:
    """GreenMIM, Swin-B at 224 pixels, window 7."""
    return at_length(greenmim(), SWIN_B, 800)


def greenmim_swin_l() -> PretrainConfig:
    """GreenMIM, Swin-L at 224 pixels, window 14."""
    return replace(at_length(greenmim(), SWIN_L, 800), model_kwargs={"window_size": 14})


def fcmae_convnextv2_b() -> PretrainConfig:
    """FCMAE, ConvNeXt V2-B at 224 pixels."""
    return at_length(fcmae(), CONVNEXT_V2_B, 800)


def fastmim_drop_vit_b() -> PretrainConfig:
    """FastMIM's target and size with MAE's token dropping, ViT-B: HOG at 128 pixels, 75 % dropped.

    This combination is in no paper. Decoder, batch and schedule are FastMIM's for ViT-B.
    """
    config = replace(mae(), image_size=128, target=TargetConfig("hog"), decoder=DecoderConfig(1, 256))
    return at_length(config, VIT_B, 800)


def fastmim_drop_vit_l() -> PretrainConfig:
    """FastMIM's target and size with MAE's token dropping, ViT-L: HOG at 128 pixels, 75 % dropped.

    This combination is in no paper. Decoder, batch and schedule are FastMIM's for ViT-L.
    """
    return replace(fastmim_drop_vit_b(), model=VIT_L, decoder=DecoderConfig(8, 512))


@dataclass(frozen=True)
class Source:
    """Recipes of a method, and the paper that they follow."""

    name: str
    """First part of the recipes' names, before the slash."""
    about: str
    rows: dict[str, Callable[[], PretrainConfig]]
    figures: dict[str, str]
    """Row of FastMIM's table 3 with the same run, by recipe."""


SOURCES = (
    Source(
        "mae",
        "MAE, He et al. 2021, arXiv 2111.06377",
        {
            "vit-b-8b512d": mae_vit_b_8b512d,
            "vit-b-1b512d": mae_vit_b_1b512d,
            "vit-l-8b512d": mae_vit_l_8b512d,
        },
        {"vit-b-8b512d": "mae_vit_b", "vit-l-8b512d": "mae_vit_l"},
    ),
    Source(
        "simmim",
        "SimMIM, Xie et al. 2022, arXiv 2111.09886",
        {"vit-b": simmim_vit_b, "swin-b": simmim_swin_b, "swin-l": simmim_swin_l},
        {"vit-b": "simmim_vit_b", "swin-b": "simmim_swin_b", "swin-l": "simmim_swin_l"},
    ),
    Source(
        "maskfeat",
        "MaskFeat, Wei et al. 2022, arXiv 2112.09133",
        {"vit-b": maskfeat_vit_b},
        {"vit-b": "maskfeat_vit_b"},
    ),
    Source(
        "lomar",
        "LoMaR, Chen et al. 2022, arXiv 2206.00790",
        {"vit-b": lomar_vit_b},
        {"vit-b": "lomar_vit_b"},
    ),
    Source("ummae", "UM-MAE, Li et al. 2022, arXiv 2205.10063", {"swin-t": ummae_swin_t}, {}),
    Source(
        "greenmim",
        "GreenMIM, Huang et al. 2022, arXiv 2205.13515",
        {"swin-b": greenmim_swin_b, "swin-l": greenmim_swin_l},
        {"swin-b": "greenmim_swin_b", "swin-l": "greenmim_swin_l"},
    ),
    Source("fcmae", "FCMAE, Woo et al. 2023, arXiv 2301.00808", {"convnextv2-b": fcmae_convnextv2_b}, {}),
    Source(
        "fastmim-drop",
        "FastMIM's HOG at low resolution with MAE's dropping; in no paper",
        {"vit-b": fastmim_drop_vit_b, "vit-l": fastmim_drop_vit_l},
        {},
    ),
)


def method_recipes(figures: dict[str, Any]) -> Iterator[Recipe]:
    """Yield the recipes of the methods, with the figure of FastMIM's table 3 (in paper.yaml) if any."""
    for source in SOURCES:
        for row, make in source.rows.items():
            config = make()
            title, _, notes = (getdoc(make) or "").partition("\n")
            figure = NO_FIGURE
            if row in source.figures:
                *_, top1 = figures["table3"][source.figures[row]]
                figure = f"{top1} % top-1 (FastMIM's table 3)"
            recipe = Recipe(
                f"{source.name}/{row}", source.about, title, notes.strip(), config, figure, config.model
            )
            yield recipe if row in source.figures else replace(recipe, hardware="")
