"""libvips as a contestant of the loader benchmark, where pyvips is installed: its reader and its resizing."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastmim.data.decode import jpeg
from fastmim.data.decode.resize import Box
from fastmim.data.loading.dataset import Batch, Draw
from fastmim.data.sources.base import ImageSource
from fastmim.data.transforms.crops import CropConfig, draw_crops
from fastmim.mim.grids import Size

SHRINKS = (8, 4, 2)  # how much smaller libjpeg-turbo makes an image while it decodes it


def has_vips() -> bool:
    """Whether pyvips is installed."""
    return importlib.util.find_spec("pyvips") is not None


@contextmanager
def one_thread() -> Iterator[None]:
    """Let libvips compute in one thread and keep no results, as a loader's worker would, within the block."""
    import pyvips

    before = pyvips.concurrency_get(), pyvips.cache_get_max()
    pyvips.concurrency_set(1)
    pyvips.cache_set_max(0)
    try:
        yield
    finally:
        pyvips.concurrency_set(before[0])
        pyvips.cache_set_max(before[1])


class VipsCrops:
    """The training crops of `dataset.Crops`, of RGB images, read and resized by libvips.

    Args:
        source: encoded images; other pixels are taken from memory.
        margin: a JPEG is made smaller as it is decoded, as long as the crop keeps so many pixels a side for
            one of the result; None: it is decoded whole.
    """

    def __init__(self, source: ImageSource, size: Size, margin: float | None) -> None:
        self.source = source
        self.size = size
        self.margin = margin

    def __getitem__(self, draw: Draw) -> Batch:
        draws = draw_crops(CropConfig(), len(draw.indices), draw.seeds)
        pixels = np.empty((len(draw.indices), *self.size, 3), np.uint8)
        for row, index in enumerate(draw.indices.tolist()):
            data = self.source.read(index)
            image = _open(data, 1)
            pixels[row] = self._crop(image, data, draws.box(row, image.height, image.width))
        flips = torch.from_numpy(draws.flips)
        return Batch(torch.from_numpy(pixels), flips, draw.indices, draw.indices, [])

    def _crop(self, image: Any, data: bytes | NDArray[Any], box: Box) -> NDArray[np.uint8]:
        shrink = 1
        if self.margin is not None and isinstance(data, bytes) and data.startswith(jpeg.MAGIC):
            room = min(box.height / self.size[0], box.width / self.size[1])
            shrink = next((by for by in SHRINKS if room >= self.margin * by), 1)
        if shrink > 1:
            image = _open(data, shrink)
        # A shrunk image may have been rounded up: its pixels stand for `shrink` of the file's each.
        left, top = box.left // shrink, box.top // shrink
        width = min(max(1, round(box.width / shrink)), image.width - left)
        height = min(max(1, round(box.height / shrink)), image.height - top)
        part = image.crop(left, top, width, height)
        part = part.resize(self.size[1] / width, vscale=self.size[0] / height, kernel="cubic")
        crop: NDArray[np.uint8] = part.numpy()
        return crop


def _open(data: bytes | NDArray[Any], shrink: int) -> Any:
    """The upright RGB image; nothing is decoded before its pixels are asked for."""
    import pyvips

    if not isinstance(data, bytes):
        return pyvips.Image.new_from_array(np.ascontiguousarray(data))
    options = {"shrink": shrink} if shrink > 1 else {}
    image = pyvips.Image.new_from_buffer(data, "", access="sequential", **options)
    if image.get_typeof("orientation") and image.get("orientation") != 1:
        image = pyvips.Image.new_from_buffer(data, "", **options).autorot()  # needs all pixels at once
    if image.bands == 3 and image.interpretation == "srgb":
        return image
    image = image.colourspace("srgb")
    return image.extract_band(0, n=3) if image.bands > 3 else image
