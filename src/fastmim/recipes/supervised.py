"""Table 4's backbones trained from scratch on ImageNet-1K, with the settings of their own authors.

FastMIM's paper gives the epochs and the figures, not the other settings; with the same settings for all, most
baselines would be weaker than the published figure. ``source`` names the origin of the settings.
"""

from dataclasses import dataclass, replace

from fastmim.config import FinetuneConfig
from fastmim.train.settings import OptimConfig, ScheduleConfig


@dataclass(frozen=True)
class Supervised:
    """Settings for training a backbone from scratch."""

    source: str
    """Origin of these settings."""
    drop_path: float
    batch_size: int = 1024
    base_lr: float = 2.5e-4
    """For a batch of 256; authors who scale by 512 state twice this value."""
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_epochs: float = 20
    min_lr: float = 1e-5
    clip_norm: float | None = None
    ema: float | None = None
    erase: float = 0.25
    """Random erasing; mixup, CutMix, RandAugment and label smoothing are the same for all backbones."""
    image_size: int = 224

    def config(self, model: str, epochs: float) -> FinetuneConfig:
        """Return a run from scratch for ``epochs`` epochs."""
        base = FinetuneConfig(
            encoder="none",
            model=model,
            image_size=self.image_size,
            epochs=epochs,
            batch_size=self.batch_size,
            layer_decay=1.0,
            drop_path=self.drop_path,
            ema=self.ema,
            optim=OptimConfig(self.base_lr, self.weight_decay, self.betas, self.clip_norm),
            schedule=ScheduleConfig(warmup_epochs=self.warmup_epochs, min_lr=self.min_lr),
        )
        return replace(base, augment=replace(base.augment, erase=self.erase))


VIT_B = Supervised(
    "MAE's paper, appendix A.2 (arXiv 2111.06377), whose figure it is",
    0.1,
    batch_size=4096,
    base_lr=1e-4,
    weight_decay=0.3,
    betas=(0.9, 0.95),
    min_lr=0.0,
    ema=0.9999,
    erase=0.0,
)
SWIN_B = Supervised("config.py and swin_base_patch4_window7_224.yaml of Swin-Transformer", 0.5, clip_norm=5.0)
PVT = Supervised("classification/main.py and configs of PVT", 0.3, warmup_epochs=5, clip_norm=1.0)
CONVNEXT_B = Supervised("TRAINING.md of ConvNeXt", 0.5, batch_size=4096, min_lr=1e-6, ema=0.9999)
CMT = Supervised("README.md and train.py of CMT.pytorch", 0.1, ema=0.99996)
AUTHORS: dict[str, Supervised] = {
    "vit_base_patch16_224": VIT_B,
    "swin_base_patch4_window7_224": SWIN_B,
    "swin_large_patch4_window7_224": replace(
        SWIN_B,
        source="Swin-Transformer has none for Swin-L on ImageNet-1K alone: Swin-B's are used",
        image_size=192,
    ),
    "twins_svt_large": Supervised(
        "main.py of Twins; drop path: its paper, section 4.1 (arXiv 2104.13840)",
        0.5,
        warmup_epochs=5,
        clip_norm=5.0,
    ),
    "pvt_large": PVT,
    "pvt_v2_b2": replace(PVT, drop_path=0.1, clip_norm=None),
    "pvt_v2_b5": PVT,
    "convnext_tiny": replace(CONVNEXT_B, drop_path=0.1),
    "convnext_base": CONVNEXT_B,
    "convnextv2_base": replace(
        CONVNEXT_B, source="ConvNeXt-V2 has none from scratch: those of ConvNeXt-B's TRAINING.md are used"
    ),
    "cmt_s": CMT,
    "cmt_b": replace(CMT, drop_path=0.25, min_lr=2e-5, image_size=256),
}
