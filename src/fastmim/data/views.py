"""Images as they are measured: whole or cut to their centre, each once, unreadable ones left out and told."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from fastmim.data.bands import UnreadableImage
from fastmim.data.images import ImageSource
from fastmim.data.loader import Batch, Canvas, Unreadable, load_batches, read_crop, to_images
from fastmim.data.resize import Box
from fastmim.grids import Size

SHARE_UP_TO_224 = 0.875  # of the shorter side, at up to 224 pixels; larger inputs see all of it


@dataclass(frozen=True)
class CenterBox:
    """The centred box of the input's shape: of a large image 7/8 of what fits, of a small one all."""

    size: Size

    def __call__(self, height: int, width: int) -> Box:
        scale = min(height / self.size[0], width / self.size[1])
        if scale > 1 and max(self.size) <= 224:
            scale = max(1.0, SHARE_UP_TO_224 * scale)
        h, w = min(height, round(scale * self.size[0])), min(width, round(scale * self.size[1]))
        h, w = max(h, 1), max(w, 1)
        return Box((height - h) // 2, (width - w) // 2, h, w)


class CenterCrops(Dataset[Batch]):
    """Answers a list of images with the `Batch` of those that can be read."""

    def __init__(self, source: ImageSource, size: Size, chans: int) -> None:
        self.source = source
        self.size = size
        self.chans = chans

    def __getitem__(self, indices: NDArray[np.int64]) -> Batch:
        canvas = Canvas(len(indices), self.size, self.chans)
        shown: list[int] = []
        unreadable: list[Unreadable] = []
        box = CenterBox(self.size)
        for index in map(int, indices):
            row = len(shown)
            try:
                crop = read_crop(self.source, index, box, self.size, self.chans, canvas.place(row))
                canvas.put(row, crop)
                shown.append(index)
            except UnreadableImage as error:
                unreadable.append(Unreadable(index, self.source.name(index), str(error)))
        pixels = canvas.batch(len(shown))
        flips = torch.zeros(len(shown), dtype=torch.bool)
        return Batch(pixels, flips, np.array(shown, np.int64), np.unique(indices), unreadable)


@dataclass(frozen=True)
class Views:
    """Every one of some images once, in order, on the device of ``mean`` and ``std``."""

    source: ImageSource
    indices: NDArray[np.int64]
    size: Size
    chans: int
    batch: int
    workers: int
    mean: Tensor
    std: Tensor

    def __iter__(self) -> Iterator[tuple[Tensor, NDArray[np.int64], list[Unreadable]]]:
        """(images (B, C, H, W), their indices, what could not be read)."""
        crops = CenterCrops(self.source, self.size, self.chans)
        parts = [
            self.indices[start : start + self.batch] for start in range(0, len(self.indices), self.batch)
        ]
        on_gpu = self.mean.device.type == "cuda"
        for batch in load_batches(crops, parts, min(self.workers, len(parts)), on_gpu):
            yield to_images(batch, self.mean, self.std), batch.indices, batch.unreadable
