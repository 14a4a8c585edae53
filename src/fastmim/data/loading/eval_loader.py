"""Evaluation loader: each image once, whole or centre-cropped; unreadable images are skipped and reported."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from fastmim.data.decode.pixels import Pixels, UnreadableImage
from fastmim.data.decode.resize import Box
from fastmim.data.loading.dataset import Batch, Canvas, UnreadableRecord, load_batches, read_crop, to_images
from fastmim.data.settings import MAX_PIXELS
from fastmim.data.sources.base import FileImages, ImageSource
from fastmim.errors import UsageError
from fastmim.system.size import Size

SHARE_UP_TO_224 = 0.875  # of the shorter side, for inputs of up to 224 pixels; larger inputs show all of it


@dataclass(frozen=True)
class CenterBox:
    """Choose the largest centred box of the input's shape; 7/8 of it for inputs of up to 224 pixels.

    The reduced box is never smaller than the input.
    """

    size: Size

    def __call__(self, height: int, width: int) -> Box:
        scale = min(height / self.size[0], width / self.size[1])
        if scale > 1 and max(self.size) <= 224:
            scale = max(1.0, SHARE_UP_TO_224 * scale)
        h, w = min(height, round(scale * self.size[0])), min(width, round(scale * self.size[1]))
        h, w = max(h, 1), max(w, 1)
        return Box((height - h) // 2, (width - w) // 2, h, w)


class EvalDataset(Dataset[Batch]):
    """Return the centre-cropped `Batch` of the readable images among the given indices."""

    def __init__(self, source: ImageSource, size: Size, chans: int, max_pixels: int = MAX_PIXELS) -> None:
        self.source = source
        self.size = size
        self.chans = chans
        self.max_pixels = max_pixels

    def __getitem__(self, indices: NDArray[np.int64]) -> Batch:
        canvas = Canvas(len(indices), self.size, self.chans)
        shown: list[int] = []
        unreadable: list[UnreadableRecord] = []
        box = CenterBox(self.size)
        for index in map(int, indices):
            row = len(shown)
            try:
                canvas.put(row, self._read(index, box, canvas.place(row)))
                shown.append(index)
            except UnreadableImage as error:
                unreadable.append(UnreadableRecord(index, self.source.name(index), str(error)))
        pixels = canvas.batch(len(shown))
        flips = torch.zeros(len(shown), dtype=torch.bool)
        return Batch(pixels, flips, np.array(shown, np.int64), np.unique(indices), unreadable)

    def _read(self, index: int, box: CenterBox, place: NDArray[np.uint8] | None) -> Pixels:
        return read_crop(self.source, index, box, self.size, self.chans, place, max_pixels=self.max_pixels)


def load_image(
    path: str | os.PathLike[str],
    image_size: int | Size,
    in_chans: int = 3,
    max_pixels: int = MAX_PIXELS,
) -> Pixels:
    """Load one image file exactly as evaluation sees it before normalisation, for serving.

    The image is turned upright, centre-cropped, and resized by Pillow's antialiased bicubic interpolation.
    The input of a model is ``(torch.from_numpy(image).permute(2, 0, 1) / 255 - mean) / std``.

    Args:
        path: the file.
        image_size: side in pixels, or (height, width).
        in_chans: 3 for RGB, 1 for grey; any other number must be the image's number of channels.
        max_pixels: limit for the image; a larger image is refused.

    Returns:
        (H, W, C) uint8; or float32 if the file has more than 8 bits per channel and is read at that depth,
        with integers scaled so that the largest value of their type is 1.

    Raises:
        UsageError: the file cannot be read as an image, with the reason.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[1])
    file = os.fspath(path)
    try:
        if in_chans < 1 or min(size) < 1:
            raise UnreadableImage(f"image_size = {image_size} and in_chans = {in_chans} must be at least 1")
        pixels = read_crop(FileImages("", [file]), 0, CenterBox(size), size, in_chans, max_pixels=max_pixels)
    except UnreadableImage as error:
        raise UsageError(f"{file}: {error}") from error
    return np.ascontiguousarray(pixels)


@dataclass(frozen=True)
class EvalLoader:
    """Iterate once over the images of ``indices``, in order, on the device of ``mean`` and ``std``."""

    source: ImageSource
    indices: NDArray[np.int64]
    size: Size
    chans: int
    batch: int
    workers: int
    mean: Tensor
    std: Tensor
    max_pixels: int = MAX_PIXELS

    def __iter__(self) -> Iterator[tuple[Tensor, NDArray[np.int64], list[UnreadableRecord]]]:
        """Yield (images (B, C, H, W), their indices, records of the unreadable images)."""
        crops = EvalDataset(self.source, self.size, self.chans, self.max_pixels)
        parts = [
            self.indices[start : start + self.batch] for start in range(0, len(self.indices), self.batch)
        ]
        on_gpu = self.mean.device.type == "cuda"
        for batch in load_batches(crops, parts, min(self.workers, len(parts)), on_gpu):
            yield to_images(batch, self.mean, self.std), batch.indices, batch.unreadable
