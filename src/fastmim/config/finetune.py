"""Configuration of fine-tuning for classification (paper: table 12)."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from fastmim.config.run import BatchSize
from fastmim.config.transfer import TransferConfig
from fastmim.data.settings import AugmentConfig, CropConfig, parse_labels
from fastmim.system.bounds import PositiveFloat, Share
from fastmim.weights.spec import SCRATCH


@dataclass(frozen=True)
class FinetuneConfig(TransferConfig):
    """Settings of `fastmim finetune`."""

    verb = "finetune"

    data: str = ""
    """Labelled images: a folder with train/ and val/, each with one folder per class.
    Or, with --val-share held out: one such folder, .parquet, saved dataset, hf:NAME[:SPLIT], demo:digits."""
    epochs: PositiveFloat = 100.0
    """Passes over the labelled images (paper: 100)."""
    batch_size: BatchSize = 256
    """Images per optimiser step, over all devices and micro-batches (paper: 1024)."""
    labels: str | None = None
    """Labels to use: a share of each class (0.01), or a number per class (10/class), drawn by --seed.
    Default: all."""
    val_share: Share = 0.2
    """Share of each class that is held out for validation, if the data has no validation split."""
    pool: Literal["avg", "token", "model"] = "avg"
    """Pooling: avg (mean of tokens, as in the paper's released code), token (class token) or model (its own).
    Backbones without a class token have one way only."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Drop path rate (stochastic depth), 0..1 (paper: ViT-B and Swin-B 0.1, Swin-L 0.3)."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Layer-wise learning rate decay: factor from each layer to the one before it; 1: none.
    Default: 0.75, or 1 from scratch (paper: ViT-B 0.7, Swin-B 0.8, Swin-L 0.75)."""
    head_std: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Standard deviation of the classifier's initial weights. Default: 2e-5, or 0.02 from scratch."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    crop: CropConfig = field(default_factory=lambda: CropConfig(scale=(0.08, 1.0)))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.labels is not None:
            parse_labels(self.labels)

    @property
    def known_head_std(self) -> float:
        """The standard deviation of the head, with the default that depends on the weights."""
        if self.head_std is not None:
            return self.head_std
        return 0.02 if self.encoder == SCRATCH else 2e-5
