"""Images with boxes and masks: large-scale jitter and copy-paste, for training."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmim.data.annotations.instances import InstanceImages, draw_mask
from fastmim.data.decode.image import crop_and_resize, image_size
from fastmim.data.decode.pixels import Pixels, UnreadableImage
from fastmim.data.loading.dense import Sample
from fastmim.data.loading.whole_images import Geometry, JitteredImages
from fastmim.data.settings import MAX_PIXELS, JitterConfig
from fastmim.data.transforms.placement import Placement, crop
from fastmim.system.size import Size

LEAST_SIDE = 1.0  # pixels on the canvas; smaller boxes are left out
LEAST_VISIBLE = 0.1  # share of an object that must stay visible under pasted ones


class _Placed(NamedTuple):
    """An image on its canvas, with its objects."""

    pixels: Pixels
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    masks: NDArray[np.uint8]
    """(N, H, W) of the canvas, 0 or 1; without objects if masks are not used."""


class InstanceSamples(JitteredImages):
    """Jittered crops of images with their objects.

    Args:
        data: images with objects.
        config: scale jitter, flips, colours.
        geometry: sizes.
        chans: number of channels.
        masks: whether masks are drawn.
        paste: probability that objects of another image are pasted ("copy-paste", Ghiasi et al. 2021).
        max_pixels: limit for an image.
    """

    def __init__(
        self,
        data: InstanceImages,
        config: JitterConfig,
        geometry: Geometry,
        chans: int,
        masks: bool,
        paste: float = 0.0,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        super().__init__(data.source, data.indices, config, geometry, chans, max_pixels)
        self.data = data
        self.masks = masks
        self.paste = paste

    def load(self, index: int, seeds: tuple[int, ...]) -> Sample:
        """Return a crop with ``boxes`` (N, 4), ``labels`` (N,) from 0, and packed ``masks`` (N, H, W / 8)."""
        generator = np.random.default_rng(seeds)
        placed = self._place(index, generator)
        if self.paste and generator.random() < self.paste:
            other = int(generator.choice(self.indices))
            placed = _pasted(placed, self._place(other, generator), self.geometry.canvas, generator)
        pixels = placed.pixels
        pixels = self.finished(pixels, generator)
        arrays: dict[str, NDArray[Any]] = {"boxes": placed.boxes, "labels": placed.labels}
        if self.masks:
            arrays["masks"] = np.packbits(placed.masks, axis=-1)
        return Sample(pixels, arrays)

    def _place(self, index: int, generator: np.random.Generator) -> _Placed:
        try:
            content = self.source.read(index)
        except OSError as error:
            raise UnreadableImage(error.strerror or str(error)) from error
        original = image_size(content, self.chans, self.max_pixels)
        scale = self.geometry.scale(original) * float(generator.uniform(*self.config.scale))
        flip = self.config.flip and bool(generator.random() < 0.5)
        place = float(generator.random()), float(generator.random())
        placement = crop(original, scale, self.geometry.canvas, place, flip)
        quality = self.config.decode
        pixels = crop_and_resize(
            content, lambda *_: placement.box, placement.size, self.chans, None, quality, self.max_pixels
        )
        if flip:
            pixels = np.ascontiguousarray(pixels[:, ::-1])
        return self._objects(index, pixels, placement, original)

    def _objects(self, index: int, pixels: Pixels, placement: Placement, original: Size) -> _Placed:
        objects = self.data.objects[index]
        boxes = placement.boxes(objects.boxes)
        shown = (boxes[:, 2:] - boxes[:, :2]).min(1, initial=np.inf) >= LEAST_SIDE
        shown &= ~objects.crowd
        canvas = self.geometry.canvas
        if not self.masks:
            return _Placed(pixels, boxes[shown], objects.labels[shown], np.zeros((0, *canvas), np.uint8))
        masks = np.zeros((len(boxes), *canvas), np.uint8)
        for number in np.flatnonzero(shown):
            segmentation = objects.segmentations[number]
            if segmentation is None:
                shown[number] = False
                continue
            masks[number] = draw_mask(segmentation, original, canvas, placement)
            shown[number] = bool(masks[number].any())
        return _Placed(pixels, boxes[shown], objects.labels[shown], masks[shown])


def _pasted(below: _Placed, above: _Placed, canvas: Size, generator: np.random.Generator) -> _Placed:
    """Paste a random part of the objects of one image on another one."""
    chosen = np.flatnonzero(generator.random(len(above.boxes)) < 0.5)
    if not len(chosen) or below.pixels.dtype != above.pixels.dtype:
        return below
    # Paste the pixels, on the part of the canvas that the image below covers.
    tall, wide = below.pixels.shape[:2]
    pasted = above.masks[chosen].copy()
    pasted[:, tall:], pasted[:, :, wide:] = 0, 0
    shown = pasted.any((1, 2))
    pasted, labels = pasted[shown], above.labels[chosen][shown]
    cover = np.asarray(pasted.any(0))
    pixels = below.pixels.copy()
    tall, wide = min(tall, above.pixels.shape[0]), min(wide, above.pixels.shape[1])
    pixels[:tall, :wide][cover[:tall, :wide]] = above.pixels[:tall, :wide][cover[:tall, :wide]]
    # Cut the objects below, and leave out those that hardly show.
    before = below.masks.sum((1, 2))
    masks = below.masks * ~cover
    kept = masks.sum((1, 2)) > LEAST_VISIBLE * before
    masks = np.concatenate([masks[kept], pasted])
    labels = np.concatenate([below.labels[kept], labels])
    return _Placed(pixels, boxes_of(masks), labels, masks)


def boxes_of(masks_NHW: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the box of each mask, (N, 4), as x1, y1, x2, y2; masks must not be empty."""
    boxes = np.zeros((len(masks_NHW), 4), np.float32)
    for number, mask in enumerate(masks_NHW):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        boxes[number] = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    return boxes
