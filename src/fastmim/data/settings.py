"""Settings of data and its transforms. This module needs no torch."""

import math
import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from fastmim.errors import UsageError
from fastmim.system.bounds import Chance, NonNegativeFloat, check_bounds

MAX_PIXELS = 100_000_000  # of the largest image that is decoded, unless another limit is given
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
Strength = Annotated[float, Field(ge=0, le=10)]


@dataclass(frozen=True)
class CropConfig:
    """Which part of an image the model sees, and how its values are scaled."""

    scale: tuple[float, float] = (0.2, 1.0)
    """Least and largest share of the image's area that a crop takes."""
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Least and largest ratio of a crop's width to its height."""
    flip: bool = True
    """Mirror half of the crops."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel (8-bit values as 0..1) that is subtracted; default: the encoder's in
    fine-tuning; else ImageNet's for 3 channels, or measured on the data."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel that values are divided by; default: as for the mean."""
    decode: Literal["full", "fast"] = "full"
    """full: training crops as Pillow's antialiased bicubic makes them. fast: blurred, from a JPEG decoded to
    fewer pixels than the crop has; quicker on large files, and HOG targets differ by a fifth of what the
    mean of all targets gets wrong. Evaluation never takes it."""

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UsageError(f"crop.scale = {self.scale} must be two shares, 0 < least <= largest <= 1")
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise UsageError(f"crop.aspect = {self.aspect} must be two ratios, 0 < least <= largest")
        if (self.mean is None) != (self.std is None):
            raise UsageError(
                f"crop.mean = {self.mean} and crop.std = {self.std} go together: give both or neither"
            )
        if self.mean is not None and self.std is not None:
            finite = all(math.isfinite(number) for number in (*self.mean, *self.std))
            if not finite or len(self.mean) != len(self.std) or min(self.std, default=0) <= 0:
                raise UsageError(
                    f"crop.mean = {self.mean} and crop.std = {self.std} must be one finite number a channel "
                    "each, and std above 0"
                )

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation, which a resolved configuration has."""
        if self.mean is None or self.std is None:
            raise ValueError("the channels' mean and std are not known yet")
        return self.mean, self.std


@dataclass(frozen=True)
class AugmentConfig:
    """How training images and their labels are varied (paper: table 12)."""

    rand_magnitude: Strength = 9.0
    """RandAugment's strength, 0 to 10; 0: none. It needs RGB images of 8 bits: others stay as they are."""
    rand_std: Strength = 0.5
    """Standard deviation of its strength."""
    mixup: NonNegativeFloat = 0.8
    """Alpha of mixup; 0: none."""
    cutmix: NonNegativeFloat = 1.0
    """Alpha of CutMix; 0: none. With mixup, one of the two is drawn for each micro-batch."""
    smoothing: Chance = 0.1
    """Label smoothing, 0..1."""
    erase: Chance = 0.25
    """Chance of an image to have a rectangle replaced by noise."""

    def __post_init__(self) -> None:
        check_bounds(self, "augment")


def parse_labels(wanted: str) -> tuple[float, int | None]:
    """``0.01`` -> (0.01, None), ``10/class`` -> (1.0, 10). Raises UsageError."""
    match = re.fullmatch(r"(\d+)\s*/\s*class", wanted.strip())
    if match and int(match[1]) > 0:
        return 1.0, int(match[1])
    try:
        share = float(wanted)
    except ValueError:
        share = 0.0
    if match or not 0 < share <= 1:
        raise UsageError(f"labels = {wanted} must be a share, 0 < share <= 1, or a number as 10/class")
    return share, None
