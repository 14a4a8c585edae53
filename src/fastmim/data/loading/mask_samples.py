"""Images with masks: jittered crops for training, whole images for evaluation."""

import numpy as np
from numpy.typing import NDArray

from fastmim.data.annotations.mask_pairs import MaskedImages
from fastmim.data.annotations.masks import IGNORED, check_same_size, read_mask
from fastmim.data.decode.pixels import Pixels, UnreadableImage
from fastmim.data.decode.resize import Box, cut
from fastmim.data.loading.dataset import read_crop
from fastmim.data.loading.dense import Arrays, Sample
from fastmim.data.loading.whole_images import Geometry, JitteredImages, WholeImages
from fastmim.data.settings import MAX_PIXELS, JitterConfig
from fastmim.data.transforms.placement import Placement, crop
from fastmim.system.size import Size

ATTEMPTS = 10  # crops tried until none of the classes covers more than `max_class_share`


class MaskSamples(JitteredImages):
    """Jittered crops of images and their masks.

    Args:
        data: images with masks.
        config: scale jitter, flips, colours.
        geometry: sizes.
        chans: number of channels.
        max_class_share: share of a crop that one class may cover; otherwise another crop is tried.
        max_pixels: limit for an image.
    """

    def __init__(
        self,
        data: MaskedImages,
        config: JitterConfig,
        geometry: Geometry,
        chans: int,
        max_class_share: float = 1.0,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        super().__init__(data.source, data.indices, config, geometry, chans, max_pixels)
        self.data = data
        self.max_class_share = max_class_share

    def load(self, index: int, seeds: tuple[int, ...]) -> Sample:
        """Return a crop with its mask ``mask`` (1, H, W), uint8, ignored where the canvas is padded."""
        generator = np.random.default_rng(seeds)
        mask = _mask(self.data, index, self.max_pixels)
        placement = self._place((mask.shape[0], mask.shape[1]), mask, generator)

        def choose(height: int, width: int) -> Box:
            check_same_size(mask, (height, width))
            return placement.box

        quality = self.config.decode
        pixels = read_crop(
            self.source, index, choose, placement.size, self.chans, None, quality, self.max_pixels
        )
        if placement.flip:
            pixels = np.ascontiguousarray(pixels[:, ::-1])
        pixels = self.finished(pixels, generator)
        target = placement.mask(mask, self.geometry.canvas, IGNORED)
        return Sample(pixels, {"mask": target[None]})

    def _place(self, image: Size, mask: NDArray[np.uint8], generator: np.random.Generator) -> Placement:
        """Draw a scale, a flip, and crops until no class covers too much of one."""
        scale = self.geometry.scale(image) * float(generator.uniform(*self.config.scale))
        flip = self.config.flip and bool(generator.random() < 0.5)
        for _ in range(ATTEMPTS):
            place = float(generator.random()), float(generator.random())
            placement = crop(image, scale, self.geometry.canvas, place, flip)
            if self.max_class_share >= 1:
                break
            counts = np.bincount(cut(mask, placement.box).ravel(), minlength=IGNORED + 1)[:IGNORED]
            if np.count_nonzero(counts) > 1 and counts.max() < self.max_class_share * counts.sum():
                break
        return placement


class WholeMasks:
    """Whole images at one or several scales, with their masks at the original size."""

    def __init__(
        self,
        data: MaskedImages,
        geometry: Geometry,
        chans: int,
        scales: tuple[float, ...] = (1.0,),
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.source = data.source
        self.data = data
        self.wholes = WholeImages(data.source, geometry.scale, chans, scales, max_pixels)
        self.max_pixels = max_pixels

    def load_whole(self, index: int) -> tuple[list[Pixels], Size, Arrays]:
        """Return the image at each scale, its size, and ``mask`` (H, W), uint8."""
        mask = _mask(self.data, index, self.max_pixels)
        pixels, original, _ = self.wholes.load_whole(index)
        check_same_size(mask, original)
        return pixels, original, {"mask": mask}


def _mask(data: MaskedImages, index: int, max_pixels: int) -> NDArray[np.uint8]:
    """Read the mask of an image. Raises UnreadableImage."""
    try:
        content = data.masks.read(index)
    except OSError as error:
        raise UnreadableImage(f"its mask cannot be read: {error.strerror or error}") from error
    assert isinstance(content, bytes)
    return read_mask(content, data.code, max_pixels)
