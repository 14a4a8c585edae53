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
from fastmim.data.loading.dataset import Batch, BatchRequest
from fastmim.data.settings import CropConfig
from fastmim.data.sources.base import ImageSource
from fastmim.data.transforms.crops import draw_crops
from fastmim.system.size import Size

SHRINKS = (8, 4, 2)  # factors by which libjpeg-turbo can shrink an image while decoding


def has_vips() -> bool:
    """Return whether pyvips is installed."""
    return importlib.util.find_spec("pyvips") is not None


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit libvips to one thread and no cache within the block, as in a worker of the loader."""
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
    """Training crops of RGB images as `dataset.CropDataset` makes them, read and resized by libvips.

    Args:
        source: encoded images; decoded pixels are read from memory.
        margin: shrink a JPEG while decoding as long as the crop's side keeps this many pixels for each of
            the result's; None: decode it in full.
    """

    def __init__(self, source: ImageSource, size: Size, margin: float | None) -> None:
        self.source = source
        self.size = size
        self.margin = margin

    def __getitem__(self, request: BatchRequest) -> Batch:
        draws = draw_crops(CropConfig(), len(request.indices), request.seeds)
        pixels = np.empty((len(request.indices), *self.size, 3), np.uint8)
        for row, index in enumerate(request.indices.tolist()):
            data = self.source.read(index)
            image = _open(data, 1)
            pixels[row] = self._crop(image, data, draws.box(row, image.height, image.width))
        flips = torch.from_numpy(draws.flips)
        return Batch(torch.from_numpy(pixels), flips, request.indices, request.indices, [])

    def _crop(self, image: Any, data: bytes | NDArray[Any], box: Box) -> NDArray[np.uint8]:
        shrink = 1
        if self.margin is not None and isinstance(data, bytes) and data.startswith(jpeg.MAGIC):
            room = min(box.height / self.size[0], box.width / self.size[1])
            shrink = next((by for by in SHRINKS if room >= self.margin * by), 1)
        if shrink > 1:
            image = _open(data, shrink)
        # The size of a shrunk image may be rounded up; each of its pixels covers `shrink` of the file's.
        left, top = box.left // shrink, box.top // shrink
        width = min(max(1, round(box.width / shrink)), image.width - left)
        height = min(max(1, round(box.height / shrink)), image.height - top)
        part = image.crop(left, top, width, height)
        part = part.resize(self.size[1] / width, vscale=self.size[0] / height, kernel="cubic")
        crop: NDArray[np.uint8] = part.numpy()
        return crop


def _open(data: bytes | NDArray[Any], shrink: int) -> Any:
    """Return the upright RGB image; it is decoded when its pixels are read."""
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
