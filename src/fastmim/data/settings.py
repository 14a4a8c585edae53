"""Settings of data and its transforms. This module needs no torch."""

import math
import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from fastmim.errors import UsageError
from fastmim.system.bounds import Chance, NonNegativeFloat, check_bounds

MAX_PIXELS = 100_000_000  # default limit for a decoded image
MOST_JITTER = 10.0  # times the fitted size
Strength = Annotated[float, Field(ge=0, le=10)]


@dataclass(frozen=True)
class PixelConfig:
    """Normalisation and decoding of images."""

    mean: tuple[float, ...] | None = None
    """Mean to subtract from each channel (8-bit values as 0..1). Default: the encoder's in fine-tuning; else
    ImageNet's for 3 channels, or measured on the data."""
    std: tuple[float, ...] | None = None
    """Standard deviation to divide each channel by. Default: as for the mean."""
    decode: Literal["full", "fast"] = "full"
    """full: training crops as by Pillow's antialiased bicubic interpolation. fast: blurred crops, from a JPEG
    decoded to fewer pixels than the crop has; faster on large files, but HOG targets differ by a fifth of
    the error of predicting their mean. Evaluation never uses fast."""

    def check_statistics(self, group: str) -> None:
        """Raise UsageError unless mean and std have a number a channel each, or both are missing."""
        if (self.mean is None) != (self.std is None):
            raise UsageError(
                f"{group}.mean = {self.mean} and {group}.std = {self.std} go together: give both or neither"
            )
        if self.mean is not None and self.std is not None:
            finite = all(math.isfinite(number) for number in (*self.mean, *self.std))
            if not finite or len(self.mean) != len(self.std) or min(self.std, default=0) <= 0:
                raise UsageError(
                    f"{group}.mean = {self.mean} and {group}.std = {self.std} must be one finite number a "
                    "channel each, and std above 0"
                )

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel. Raises ValueError in an unresolved configuration."""
        if self.mean is None or self.std is None:
            raise ValueError("the channels' mean and std are not known yet")
        return self.mean, self.std


@dataclass(frozen=True)
class CropConfig(PixelConfig):
    """Crop area, aspect ratio, flips and normalisation of the images."""

    scale: tuple[float, float] = (0.2, 1.0)
    """Smallest and largest share of the image's area in a crop."""
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest ratio of a crop's width to its height."""
    flip: bool = True
    """Mirror half of the crops."""

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UsageError(f"crop.scale = {self.scale} must be two shares, 0 < least <= largest <= 1")
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise UsageError(f"crop.aspect = {self.aspect} must be two ratios, 0 < least <= largest")
        self.check_statistics("crop")


@dataclass(frozen=True)
class JitterConfig(PixelConfig):
    """Scale jitter, flips, colours and normalisation of images with masks or boxes."""

    scale: tuple[float, float] = (0.5, 2.0)
    """Smallest and largest factor by which an image is scaled before it is cropped. A factor of 1 fits it
    to --image-size."""
    flip: bool = True
    """Mirror half of the crops."""
    distort: bool = True
    """Change brightness, contrast, saturation and hue at random (8-bit RGB images only)."""

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= MOST_JITTER:
            raise UsageError(
                f"jitter.scale = {self.scale} must be two factors, 0 < least <= largest <= {MOST_JITTER:g}"
            )
        self.check_statistics("jitter")


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of training images and their labels (paper: table 12)."""

    rand_magnitude: Strength = 9.0
    """Strength of RandAugment, 0 to 10; 0: none. Only 8-bit RGB images are augmented by it."""
    rand_std: Strength = 0.5
    """Standard deviation of the strength of RandAugment."""
    mixup: NonNegativeFloat = 0.8
    """Alpha of mixup; 0: none."""
    cutmix: NonNegativeFloat = 1.0
    """Alpha of CutMix; 0: none. If mixup is also used, one of the two is drawn for each micro-batch."""
    smoothing: Chance = 0.1
    """Label smoothing, 0..1."""
    erase: Chance = 0.25
    """Probability that a rectangle of an image is replaced by noise, 0..1."""

    def __post_init__(self) -> None:
        check_bounds(self, "augment")


def parse_labels(wanted: str) -> tuple[float, int | None]:
    """Parse a share or a number of labels: ``0.01`` -> (0.01, None), ``10/class`` -> (1.0, 10).

    Raises UsageError if ``wanted`` is neither.
    """
    match = re.fullmatch(r"(\d+)\s*/\s*class", wanted.strip())
    if match and int(match[1]) > 0:
        return 1.0, int(match[1])
    try:
        share = float(wanted)
    except ValueError:
        share = 0.0
    if match or not 0 < share <= 1:
        raise UsageError(f"labels = {wanted} must be a share, 0 < share <= 1, or a number such as 10/class")
    return share, None


def images_wanted(wanted: str, images: int) -> int:
    """Return how many images ``wanted`` names: a share (``0.1``) of ``images``, or a number (``20``).

    Raises UsageError if ``wanted`` is neither.
    """
    try:
        value = float(wanted)
    except ValueError:
        value = 0.0
    if 0 < value <= 1:
        return max(1, round(value * images))
    if value > 1 and value.is_integer():
        return int(value)
    raise UsageError(
        f"labels = {wanted} must be a share of the images, 0 < share <= 1, or a number of images above 1"
    )
