"""RandomResizedCrop from one NumPy generator a batch: crops and flips are a function of the seed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from fastmim.data.decode.resize import Box
from fastmim.errors import UsageError

ATTEMPTS = 10


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
class CropDraws:
    """The random numbers of a batch of crops, drawn before any image is known."""

    areas: np.ndarray  # (B, ATTEMPTS), share of the image's area
    aspects: np.ndarray  # (B, ATTEMPTS), width / height
    tops: np.ndarray  # (B,), in 0..1
    lefts: np.ndarray  # (B,), in 0..1
    flips: np.ndarray  # (B,), boolean

    def part(self, part: slice) -> "CropDraws":
        """Those of some of the crops."""
        return CropDraws(
            self.areas[part], self.aspects[part], self.tops[part], self.lefts[part], self.flips[part]
        )

    @cached_property
    def _shapes(self) -> list[list[tuple[float, float]]]:
        """Heights and widths, (B, ATTEMPTS), as shares of the square root of the image's area."""
        heights, widths = np.sqrt(self.areas / self.aspects), np.sqrt(self.areas * self.aspects)
        return [list(zip(*pair, strict=True)) for pair in zip(heights.tolist(), widths.tolist(), strict=True)]

    @cached_property
    def _places(self) -> list[tuple[float, float]]:
        return list(zip(self.tops.tolist(), self.lefts.tolist(), strict=True))

    def box(self, row: int, height: int, width: int) -> Box:
        """The first of the drawn shapes that fits the image, else the largest centred one that does."""
        side = math.sqrt(height * width)
        for tall, wide in self._shapes[row]:
            h, w = round(tall * side), round(wide * side)
            if 0 < h <= height and 0 < w <= width:
                top, left = self._places[row]
                return Box(int(top * (height - h + 1)), int(left * (width - w + 1)), h, w)
        return _largest_box(height, width, float(self.aspects[row].min()), float(self.aspects[row].max()))


def draw_crops(config: CropConfig, count: int, seeds: Sequence[int]) -> CropDraws:
    """The draws of a batch of ``count`` crops, fixed by ``seeds``."""
    generator = np.random.default_rng(list(seeds))
    low, high = (math.log(bound) for bound in config.aspect)
    areas = generator.uniform(*config.scale, (count, ATTEMPTS))
    aspects = np.exp(generator.uniform(low, high, (count, ATTEMPTS)))
    tops, lefts, coins = generator.uniform(size=(3, count))
    return CropDraws(areas, aspects, tops, lefts, (coins < 0.5) & config.flip)


def _largest_box(height: int, width: int, low: float, high: float) -> Box:
    aspect = min(max(width / height, low), high)
    h = min(height, max(1, round(width / aspect)))
    w = min(width, max(1, round(height * aspect)))
    return Box((height - h) // 2, (width - w) // 2, h, w)
