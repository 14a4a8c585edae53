"""RandomResizedCrop from one NumPy generator per batch: crops and flips are a function of the seed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fastmim.data.decode.resize import Box
from fastmim.data.settings import CropConfig

ATTEMPTS = 10


@dataclass(frozen=True)
class CropDraws:
    """Random numbers of a batch of crops, drawn before the size of any image is known."""

    areas: np.ndarray  # (B, ATTEMPTS), share of the image's area
    aspects: np.ndarray  # (B, ATTEMPTS), width / height
    tops: np.ndarray  # (B,), in 0..1
    lefts: np.ndarray  # (B,), in 0..1
    flips: np.ndarray  # (B,), boolean

    def part(self, part: slice) -> "CropDraws":
        """Return the draws of a slice of the crops."""
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
        """Return the first drawn box that fits the image, or else the largest centred one that fits."""
        side = math.sqrt(height * width)
        for tall, wide in self._shapes[row]:
            h, w = round(tall * side), round(wide * side)
            if 0 < h <= height and 0 < w <= width:
                top, left = self._places[row]
                return Box(int(top * (height - h + 1)), int(left * (width - w + 1)), h, w)
        return _largest_box(height, width, float(self.aspects[row].min()), float(self.aspects[row].max()))


def draw_crops(config: CropConfig, count: int, seeds: Sequence[int]) -> CropDraws:
    """Draw the random numbers of a batch of ``count`` crops from ``seeds``."""
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
