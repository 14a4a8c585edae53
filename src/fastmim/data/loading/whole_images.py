"""Sizes to which images are scaled for dense tasks, whole images for evaluation, and changes of colours."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms import v2

from fastmim.data.decode.image import crop_and_resize, image_size
from fastmim.data.decode.pixels import Pixels, UnreadableImage
from fastmim.data.loading.dense import Arrays
from fastmim.data.settings import MAX_PIXELS, JitterConfig
from fastmim.data.sources.base import ImageSource
from fastmim.data.transforms.placement import Placement, fitted, whole
from fastmim.system.size import Size

LONG_SIDES = 4.0  # longest side of an image, in its shorter sides: 2048 for 512


@dataclass(frozen=True)
class Geometry:
    """Sizes to which images are scaled."""

    canvas: Size
    """(H, W) of a crop."""
    short_side: int
    """Of the scaled image before jitter, in pixels."""
    fits: bool = False
    """Scale images so that they fit into the canvas, instead of to the shorter side."""

    def scale(self, image: Size) -> float:
        """Return the factor by which an image is scaled, before jitter."""
        if self.fits:
            return min(self.canvas[0] / image[0], self.canvas[1] / image[1])
        return fitted(image, self.short_side, LONG_SIDES * self.short_side)


@dataclass(frozen=True)
class WholeImages:
    """Whole images without annotations, at one or several scales."""

    source: ImageSource
    scale: Callable[[Size], float]
    """(H, W) of an image -> factor by which it is scaled."""
    chans: int
    scales: tuple[float, ...] = (1.0,)
    """Further factors."""
    max_pixels: int = MAX_PIXELS

    def load_whole(self, index: int) -> tuple[list[Pixels], Size, Arrays]:
        """Return the image at each scale, and its size."""
        try:
            content = self.source.read(index)
        except OSError as error:
            raise UnreadableImage(error.strerror or str(error)) from error
        original = image_size(content, self.chans, self.max_pixels)
        pixels = []
        for factor in self.scales:
            placement = whole(original, factor * self.scale(original))
            pixels.append(self._read(content, placement))
        return pixels, original, {}

    def _read(self, content: bytes | NDArray[Any], placement: Placement) -> Pixels:
        return crop_and_resize(
            content, lambda *_: placement.box, placement.size, self.chans, max_pixels=self.max_pixels
        )


class JitteredImages:
    """What samples of images with annotations have in common.

    Args:
        source: the images.
        indices: the images that are used.
        config: scale jitter, flips, colours.
        geometry: sizes.
        chans: number of channels.
        max_pixels: limit for an image.
    """

    def __init__(
        self,
        source: ImageSource,
        indices: NDArray[np.int64],
        config: JitterConfig,
        geometry: Geometry,
        chans: int,
        max_pixels: int,
    ) -> None:
        self.source = source
        self.indices = indices
        self.config = config
        self.geometry = geometry
        self.chans = chans
        self.max_pixels = max_pixels

    def finished(self, pixels: Pixels, generator: np.random.Generator) -> Pixels:
        """Change the colours of a crop, if the settings ask for it."""
        return distorted(pixels, int(generator.integers(1 << 62))) if self.config.distort else pixels


def distorted(pixels: Pixels, seed: int) -> Pixels:
    """Change brightness, contrast, saturation and hue of an 8-bit RGB image; return others unchanged."""
    if pixels.dtype != np.uint8 or pixels.shape[2] != 3:
        return pixels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
        changed: torch.Tensor = v2.RandomPhotometricDistort()(image)
    return changed.permute(1, 2, 0).contiguous().numpy()
