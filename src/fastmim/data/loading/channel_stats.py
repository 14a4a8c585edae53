"""Measure the mean and standard deviation of each channel of a data set, in one pass over some images."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch.utils.data import Dataset

from fastmim.data.decode import tiff
from fastmim.data.decode.image import decode
from fastmim.data.decode.pixels import NPY_MAGIC, UnreadableImage, to_float
from fastmim.data.decode.resize import Box
from fastmim.data.loading.dataset import read_crop
from fastmim.data.loading.workers import answers
from fastmim.data.seeds import STATS_SEED
from fastmim.data.settings import MAX_PIXELS, PixelConfig
from fastmim.data.sources.base import ImageSource
from fastmim.errors import UsageError
from fastmim.system.size import Size

MEASURED_IMAGES = 1024  # sampled if the statistics are not given
RANGED_IMAGES = 32  # sampled for the value range of floating-point RGB
MAYBE_FLOAT = (NPY_MAGIC, *tiff.MAGICS)  # first bytes of files that may hold floats
# Distance of a fill value from all other values, in multiples of their range: no value of a scene lies so far
# from the others, but highlights may be far above them.
FAR_BELOW, FAR_ABOVE = 3, 10
FLAT = 1e-6  # largest std / |mean| of a channel that is constant apart from rounding


@dataclass(frozen=True)
class ChannelStats:
    """Result of `measure_stats`, on the scale that `dataset.to_images` normalises (8 bits as 0..1)."""

    mean: tuple[float, ...]
    std: tuple[float, ...]  # 1 for a constant channel
    images: int  # number measured
    unreadable: int  # number left out


@dataclass(frozen=True)
class _Moments:
    """Mean and variance of each channel of one image, (C,) float64, or the reason why it is unreadable."""

    mean: NDArray[np.float64]
    variance: NDArray[np.float64]
    reason: str = ""


class _ImageMoments(Dataset[_Moments]):
    def __init__(self, source: ImageSource, chans: int, size: Size, max_pixels: int) -> None:
        self.source = source
        self.chans = chans
        self.size = size
        self.max_pixels = max_pixels

    def __getitem__(self, index: int) -> _Moments:
        try:
            pixels = read_crop(self.source, index, _whole, self.size, self.chans, max_pixels=self.max_pixels)
        except UnreadableImage as error:
            return _Moments(np.empty(0), np.empty(0), f"{self.source.name(index)}: {error}")
        values = to_float(pixels).reshape(-1, self.chans).astype(np.float64)
        return _Moments(values.mean(0), values.var(0))


def measure_stats(
    source: ImageSource,
    chans: int,
    size: Size,
    count: int | None,
    seed: int,
    workers: int = 0,
    max_pixels: int = MAX_PIXELS,
) -> ChannelStats:
    """Measure the mean and standard deviation of each channel over ``count`` images drawn by ``seed``.

    Args:
        source: the images; an unreadable image is counted and left out.
        chans: number of channels of each image.
        size: (H, W) to which each whole image is resized, so that all images have the same weight.
        count: number of images to draw; None for all.
        seed: seed of the draw; the result does not depend on ``workers``.
        workers: number of processes that read images (0: this process).
        max_pixels: limit for an image; larger images are left out.

    Raises:
        UsageError: none of the images can be read.
    """
    # Accumulate the moments of the drawn images.
    drawn = np.random.default_rng([STATS_SEED, seed]).permutation(len(source))[:count]
    mean, within, between = np.zeros((3, chans))
    measured, reasons = 0, []
    images = _ImageMoments(source, chans, size, max_pixels)
    for moments in answers(images, np.sort(drawn).tolist(), workers):
        if moments.reason:
            reasons.append(moments.reason)
            continue
        # All images have equally many pixels, so the variance over all of them is the mean of the images'
        # variances plus the variance of their means (the latter as in Welford, Technometrics 1962).
        measured += 1
        step = moments.mean - mean
        mean = mean + step / measured
        between = between + step * (moments.mean - mean)
        within = within + moments.variance
    # Refuse data without a usable result.
    if not measured:
        first = f"; the first is {reasons[0]}" if reasons else ""
        raise UsageError(f"data: none of {len(drawn)} images can be read with {chans} channels{first}")
    if not np.isfinite([mean, within, between]).all():
        raise UsageError("data: the values are too large to be measured: mark missing pixels another way")
    # Combine the moments; a constant channel is not scaled.
    std = np.sqrt((within + between) / measured)
    std = np.where(std <= FLAT * np.abs(mean), 1.0, std)
    return ChannelStats(tuple(mean.tolist()), tuple(std.tolist()), measured, len(reasons))


def _whole(height: int, width: int) -> Box:
    return Box(0, 0, height, width)


def quietly(_: str) -> None:
    """Discard a message."""


def channel_statistics(
    pixels: PixelConfig,
    source: ImageSource,
    in_chans: int,
    size: Size,
    seed: int,
    max_pixels: int = MAX_PIXELS,
    say: Callable[[str], None] = quietly,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and std of each channel: those configured, ImageNet's for RGB, or else measured ones.

    Floating-point RGB outside the range of photographs (0..1) is also measured.
    """
    if pixels.mean is not None:
        return pixels.statistics
    why = f"images of {in_chans} channels"
    if in_chans == len(IMAGENET_DEFAULT_MEAN):
        least, most = value_range(source, in_chans, seed, max_pixels)
        if least >= 0 and most <= 1:
            return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
        why = f"values of {least:g} to {most:g} are not those of photographs (0 to 1)"
    stats = measure_stats(source, in_chans, size, MEASURED_IMAGES, seed, max_pixels=max_pixels)
    filled = fill_note(source, in_chans, seed, max_pixels)
    if filled:
        say(f"data: {filled}")
    say(f"mean and standard deviation are measured on {stats.images} images, since {why}")
    return stats.mean, stats.std


def fill_note(source: ImageSource, chans: int, seed: int, max_pixels: int = MAX_PIXELS) -> str | None:
    """Return a note if a value far from all others of its image seems to mark missing pixels; else None."""
    drawn = _some_numbers(source, chans, seed, max_pixels)
    fills = [_fill(to_float(pixels)) for pixels in drawn if pixels.dtype != np.uint8]
    found = [value for value in fills if value is not None]
    if not found:
        return None
    return (
        f"{found[0]:g} is far from all other values in {len(found)} of {len(fills)} images, as if it marked "
        "missing pixels: fill them first"
    )


def _fill(pixels: NDArray[np.floating[Any]]) -> float | None:
    """Return the extreme value if several pixels have it and all others lie close together; else None."""
    for value, far in ((float(pixels.min()), FAR_BELOW), (float(pixels.max()), FAR_ABOVE)):
        others = pixels[pixels != value]
        if 0 < others.size <= pixels.size - 2:
            least, most = float(others.min()), float(others.max())
            if least < most and max(least - value, value - most) > far * (most - least):
                return value
    return None


def value_range(
    source: ImageSource, chans: int, seed: int, max_pixels: int = MAX_PIXELS
) -> tuple[float, float]:
    """Return the least and largest of 0 and the values of a few images drawn by ``seed``, 8 bits as 0..1."""
    least, most = 0.0, 0.0
    for pixels in _some_numbers(source, chans, seed, max_pixels):
        values = to_float(pixels)
        least, most = min(least, float(values.min())), max(most, float(values.max()))
    return least, most


def _some_numbers(source: ImageSource, chans: int, seed: int, max_pixels: int) -> Iterator[NDArray[Any]]:
    """Yield those of a few images drawn by ``seed`` whose values may have any range."""
    drawn = np.random.default_rng([STATS_SEED, seed]).permutation(len(source))[:RANGED_IMAGES]
    for index in np.sort(drawn).tolist():
        try:
            data = source.read(index)
            if isinstance(data, bytes) and not data.startswith(MAYBE_FLOAT):
                continue
            yield decode(data, chans, max_pixels)
        except (UnreadableImage, OSError):
            continue
