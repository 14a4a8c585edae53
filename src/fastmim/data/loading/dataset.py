"""Load whole batches of crops in worker processes, in an order that is a function of the seed."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from fastmim.data.decode.image import BoxChooser, Quality, crop_and_resize
from fastmim.data.decode.pixels import Pixels, UnreadableImage, to_float
from fastmim.data.loading.workers import answers, check_shared_memory
from fastmim.data.settings import MAX_PIXELS, CropConfig
from fastmim.data.sources.base import ImageSource
from fastmim.data.transforms.crops import draw_crops
from fastmim.errors import RunError
from fastmim.system.size import Size

REPLACEMENTS = 100  # images tried in place of an unreadable one before the run fails


@dataclass(frozen=True)
class BatchRequest:
    """A part of one batch: the indices of its images, and the seeds of the whole batch's crops.

    The draws for an image depend on its position in the whole batch, not on the number of processes that
    share the batch.
    """

    indices: NDArray[np.int64]
    seeds: tuple[int, ...]
    first: int = 0
    """Position of the first of these images in the whole batch."""
    whole: int | None = None
    """Number of images in the whole batch. None: the length of ``indices``."""


@dataclass(frozen=True)
class UnreadableRecord:
    """A skipped image and the reason."""

    index: int
    name: str
    reason: str


@dataclass
class Batch:
    """Crops as a worker returns them; `to_images` converts them to the input of a model."""

    pixels_BHWC: Tensor  # uint8, or float32 if an image of the batch has more than 8 bits
    flips_B: Tensor  # bool
    indices: NDArray[np.int64]  # of the cropped images
    tried: NDArray[np.int64]  # indices of all opened images, unreadable ones included
    unreadable: list[UnreadableRecord]

    def part(self, part: slice) -> "Batch":
        """Return a slice of the crops; the list of unreadable images stays with the whole batch."""
        indices = self.indices[part]
        return Batch(self.pixels_BHWC[part], self.flips_B[part], indices, indices, [])

    def pin_memory(self) -> "Batch":
        self.pixels_BHWC = self.pixels_BHWC.pin_memory()
        self.flips_B = self.flips_B.pin_memory()
        return self


Augment = Callable[[Pixels, tuple[int, ...]], Pixels]  # (crop, seeds) -> a crop of the same size


def identity(crop: Pixels, _: tuple[int, ...]) -> Pixels:
    """Return the crop unchanged."""
    return crop


class CropDataset(Dataset[Batch]):
    """Return a `Batch` for a `BatchRequest`; an unreadable image is replaced by another one and reported.

    Args:
        source: the images.
        pool: indices that replacements are drawn from.
        config: settings of the crops, including the exactness of decoding.
        size: (height, width) of each crop.
        chans: number of channels.
        augment: applied to a crop before the crop is flipped and normalised.
        max_pixels: limit for an image; larger images count as unreadable.
    """

    def __init__(
        self,
        source: ImageSource,
        pool: NDArray[np.int64],
        config: CropConfig,
        size: Size,
        chans: int,
        augment: Augment = identity,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.source = source
        self.pool = pool
        self.config = config
        self.size = size
        self.chans = chans
        self.augment = augment
        self.max_pixels = max_pixels

    def __getitem__(self, draw: BatchRequest) -> Batch:
        count = len(draw.indices)
        draws = draw_crops(self.config, draw.whole or count, draw.seeds)
        if draw.whole is not None:
            draws = draws.part(slice(draw.first, draw.first + count))
        canvas = Canvas(count, self.size, self.chans)

        def load(candidate: int, row: int, seeds: tuple[int, ...]) -> None:
            crop = self._read(candidate, partial(draws.box, row), canvas.place(row))
            canvas.put(row, self.augment(crop, seeds))

        read = read_all(draw, self.pool, self.source, load)
        flips = torch.from_numpy(draws.flips)
        return Batch(canvas.batch(count), flips, read.shown, read.tried, read.unreadable)

    def _read(self, index: int, box: BoxChooser, place: NDArray[np.uint8] | None) -> Pixels:
        quality = self.config.decode
        return read_crop(self.source, index, box, self.size, self.chans, place, quality, self.max_pixels)


class Read(NamedTuple):
    """Images of a batch request that were read."""

    shown: NDArray[np.int64]
    """Index of the image in each row."""
    tried: NDArray[np.int64]
    """Indices of all opened images."""
    unreadable: list[UnreadableRecord]


def read_all(
    draw: BatchRequest,
    pool: NDArray[np.int64],
    source: ImageSource,
    load: Callable[[int, int, tuple[int, ...]], None],
) -> Read:
    """Load an image for each row of a request; an unreadable one is replaced by another of ``pool``.

    Args:
        load: called with an image's index, its row, and the seeds of the row; raises UnreadableImage.

    Raises:
        RunError: `REPLACEMENTS` images in a row are unreadable.
    """
    shown: list[int] = []
    tried: list[int] = []
    unreadable: list[UnreadableRecord] = []
    for row, index in enumerate(draw.indices):
        seeds = (*draw.seeds, draw.first + row)
        for candidate in _candidates(int(index), pool, seeds):
            tried.append(candidate)
            try:
                load(candidate, row, seeds)
                shown.append(candidate)
                break
            except UnreadableImage as error:
                unreadable.append(UnreadableRecord(candidate, source.name(candidate), str(error)))
        else:
            last = unreadable[-1]
            raise RunError(
                f"{REPLACEMENTS} images in a row cannot be read; the last is {last.name}: {last.reason}"
            )
    return Read(np.array(shown), np.unique(tried), unreadable)


def _candidates(index: int, pool: NDArray[np.int64], seeds: tuple[int, ...]) -> Iterator[int]:
    yield index
    generator = np.random.default_rng(seeds)
    for _ in range(REPLACEMENTS):
        yield int(generator.choice(pool))


def read_crop(
    source: ImageSource,
    index: int,
    choose_box: BoxChooser,
    size: Size,
    chans: int,
    out: NDArray[np.uint8] | None = None,
    quality: Quality = "exact",
    max_pixels: int = MAX_PIXELS,
) -> Pixels:
    """Read and crop one image of a source, see `crop_and_resize`.

    Raises UnreadableImage, also for a missing file.
    """
    try:
        return crop_and_resize(source.read(index), choose_box, size, chans, out, quality, max_pixels)
    except OSError as error:
        raise UnreadableImage(error.strerror or str(error)) from error


class Canvas:
    """Buffer for a batch of crops (B, H, W, C): uint8, and float32 once a crop has more than 8 bits."""

    def __init__(self, count: int, size: Size, chans: int) -> None:
        self._batch = _new_batch((count, *size, chans))
        self.pixels: Pixels = self._batch.numpy()

    def place(self, row: int) -> NDArray[np.uint8] | None:
        """Return the memory that the crop of a row may be written to directly; None for float32."""
        return self.pixels[row] if self.pixels.dtype == np.uint8 else None

    def put(self, row: int, crop: Pixels) -> None:
        """Store the crop of a row, which may already lie in its place."""
        if crop.dtype != np.uint8 and self.pixels.dtype == np.uint8:
            self.pixels = to_float(self.pixels)
            self._batch = torch.from_numpy(self.pixels)
        place = self.pixels[row]
        if not np.may_share_memory(crop, place):
            place[...] = crop if self.pixels.dtype == np.uint8 else to_float(crop)

    def batch(self, count: int) -> Tensor:
        """Return the first ``count`` crops."""
        return self._batch[:count]


def _new_batch(shape: tuple[int, ...]) -> Tensor:
    """Allocate a uint8 batch; in a worker, in memory shared with the parent, as torch's collation does."""
    batch = torch.empty(0, dtype=torch.uint8)
    if get_worker_info() is None:
        return batch.new_empty(shape)
    check_shared_memory(math.prod(shape))
    storage = torch.UntypedStorage._new_shared(math.prod(shape))  # type: ignore[no-untyped-call]
    return batch.set_(storage).view(shape)


def load_batches(
    crops: Dataset[Batch], draws: Iterable[Any], workers: int, pin_memory: bool
) -> Iterator[Batch]:
    """Yield the batch of ``crops`` for each of ``draws``, in order. Raises the errors of `answers`."""
    return answers(crops, draws, workers, pin_memory)


def copied(batch: Batch, device: torch.device) -> Batch:
    """Copy a batch to ``device``; to a GPU on a separate stream, in parallel with the steps queued ahead."""
    if device.type != "cuda":
        return batch
    there = copied_tensors({"pixels": batch.pixels_BHWC, "flips": batch.flips_B}, device)
    return replace(batch, pixels_BHWC=there["pixels"], flips_B=there["flips"])


def copied_tensors(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Copy tensors to ``device``; to a GPU on a separate stream, in parallel with the steps queued ahead."""
    if device.type != "cuda":
        return {name: tensor.to(device) for name, tensor in tensors.items()}
    with torch.cuda.device(device):
        copies = _copies(torch.cuda.current_device())
        with torch.cuda.stream(copies):
            there = {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
        current = torch.cuda.current_stream()
        current.wait_stream(copies)
        for tensor in there.values():
            tensor.record_stream(current)
    return there


@cache
def _copies(device: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def to_images(batch: Batch, mean: Tensor, std: Tensor) -> Tensor:
    """Flip and normalise a batch on the device of ``mean`` and ``std``: (B, C, H, W), float32.

    uint8 pixels are divided by 255 first; ``mean`` and ``std`` (C,) are on that scale.
    """
    pixels_BCHW = batch.pixels_BHWC.to(mean.device, non_blocking=True).permute(0, 3, 1, 2).contiguous()
    flips_B1 = batch.flips_B.to(mean.device, non_blocking=True).view(-1, 1)
    columns = torch.arange(pixels_BCHW.shape[3], device=mean.device)
    columns_BW = torch.where(flips_B1, columns.flip(0), columns)
    return normalised(pixels_BCHW.gather(3, columns_BW[:, None, None, :].expand_as(pixels_BCHW)), mean, std)


def normalised(pixels_BCHW: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Subtract ``mean`` (C,) and divide by ``std``, after division of uint8 pixels by 255; float32."""
    images = pixels_BCHW.float() / 255 if pixels_BCHW.dtype == torch.uint8 else pixels_BCHW
    return images.sub_(mean.view(1, -1, 1, 1)).div_(std.view(1, -1, 1, 1))
