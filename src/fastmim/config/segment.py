"""Configuration of semantic segmentation (paper: table 6, table 14)."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from fastmim.config.run import BatchSize
from fastmim.config.transfer import DenseConfig
from fastmim.errors import UsageError
from fastmim.system.bounds import Chance, NonNegativeFloat, PositiveFloat, PositiveInt, check_bounds
from fastmim.train.settings import OptimConfig, ScheduleConfig


@dataclass(frozen=True)
class UperNetConfig:
    """UperNet head (Xiao et al. 2018) and its auxiliary FCN head."""

    channels: PositiveInt = 512
    """Channels of the pyramid pooling module and the feature pyramid."""
    aux_channels: PositiveInt = 256
    """Channels of the auxiliary head."""
    aux_weight: NonNegativeFloat = 0.4
    """Weight of the auxiliary head's loss; 0: no auxiliary head."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Probability that a channel is dropped before the classifiers."""

    def __post_init__(self) -> None:
        check_bounds(self, "head")


@dataclass(frozen=True)
class SlidingConfig:
    """How whole images are evaluated and predicted."""

    mode: Literal["slide", "whole"] = "slide"
    """slide: average overlapping windows of --image-size. whole: fit the whole image into --image-size."""
    step: Annotated[float, Field(gt=0, le=1)] = 2 / 3
    """Distance between windows, as a share of --image-size."""
    scales: tuple[PositiveFloat, ...] = (1.0,)
    """Scales at which an image is evaluated; probabilities are averaged (paper: 0.75 to 1.25 in steps of
    0.125)."""
    flip: bool = False
    """Evaluate each scale mirrored as well."""

    def __post_init__(self) -> None:
        check_bounds(self, "evaluation")
        if not self.scales or max(self.scales) > 10:
            raise UsageError(f"evaluation.scales = {self.scales}: one or more factors up to 10 are needed")


@dataclass(frozen=True)
class SegmentConfig(DenseConfig):
    """Settings of `fastmim segment`."""

    verb = "segment"

    data: str = ""
    """Images with masks: a folder with images/ and masks/ (or annotations/, labels/), each with train/ and
    val/ or, with --val-share held out, without; or ADE20K's layout. Files are paired by name."""
    image_size: int | tuple[int, int] = 512
    """Size of crops and windows in pixels: side, or height and width."""
    epochs: PositiveFloat = 100.0
    """Passes over the training images (paper: 160k steps of 16 images)."""
    batch_size: BatchSize = 16
    """Images per optimiser step, over all devices and micro-batches (paper: 16)."""
    short_side: PositiveInt | None = None
    """Shorter side to which images are scaled before jitter, and in evaluation. Default: that of
    --image-size."""
    classes: str | None = None
    """File with one class name a line. Default: classes.txt in the data, or the values of the masks."""
    palette: str | None = None
    """For masks in colours: a file with lines R G B NAME, one a class."""
    zero_is_unlabelled: bool | None = None
    """Ignore value 0 of the masks, and count value 1 as the first class. Default: in ADE20K's layout."""
    ignore_index: Annotated[int, Field(ge=0, le=65535)] | None = 255
    """Value of the masks that is ignored."""
    max_class_share: Chance = 0.75
    """Largest share of a crop that one class may cover, of up to 10 crops that are tried."""
    head: UperNetConfig = field(default_factory=UperNetConfig)
    evaluation: SlidingConfig = field(default_factory=SlidingConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(base_lr=1.6e-3, betas=(0.9, 0.999)))
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(name="linear"))

    @property
    def known_short_side(self) -> int:
        """Shorter side to which images are scaled, with the default that depends on the crop."""
        return self.short_side if self.short_side is not None else min(self.size)
