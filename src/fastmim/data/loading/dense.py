"""Load batches of images with masks or boxes; each image is cropped together with its annotations."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from fastmim.data.decode.pixels import Pixels, UnreadableImage
from fastmim.data.loading.dataset import (
    BatchRequest,
    Canvas,
    UnreadableRecord,
    copied_tensors,
    normalised,
    read_all,
)
from fastmim.data.loading.train_loader import Share, micro_slices
from fastmim.data.loading.unreadable import UnreadableLog
from fastmim.data.loading.workers import answers
from fastmim.data.seeds import CROP_SEED
from fastmim.data.sources.base import ImageSource
from fastmim.system.size import Size

Arrays = Mapping[str, NDArray[Any]]
Collate = Callable[[list[dict[str, Tensor]], list[Size]], Any]
"""Annotations and (h, w) on the canvas of each image of a micro-batch -> the module's second argument."""


class Sample(NamedTuple):
    """One image on its canvas, with its annotations."""

    pixels: Pixels
    """(h, w, C), at most as large as the canvas; placed at the top left."""
    arrays: Arrays
    """Annotations by name; the first axis counts objects, and is the same in all images for one name."""


class Samples(Protocol):
    """Annotated images, of which each draw of a sample is a function of the seeds."""

    source: ImageSource
    indices: NDArray[np.int64]

    def load(self, index: int, seeds: tuple[int, ...]) -> Sample:
        """Return a training sample. Raises UnreadableImage."""
        ...


@dataclass
class DenseBatch:
    """Samples as a worker returns them: annotations of all images in one tensor for each name."""

    pixels_BHWC: Tensor  # uint8, or float32
    sizes: list[Size]  # (h, w) of each image on its canvas
    arrays: dict[str, Tensor]  # annotations of all images, one after another
    counts: dict[str, list[int]]  # how many of them each image has
    indices: NDArray[np.int64]
    tried: NDArray[np.int64]
    unreadable: list[UnreadableRecord]

    def pin_memory(self) -> "DenseBatch":
        self.pixels_BHWC = self.pixels_BHWC.pin_memory()
        self.arrays = {name: value.pin_memory() for name, value in self.arrays.items()}
        return self

    def annotations(self, device: torch.device) -> list[dict[str, Tensor]]:
        """Return the annotations of each image on a device."""
        there = copied_tensors(self.arrays, device)
        parts = {name: torch.split(value, self.counts[name]) for name, value in there.items()}
        return [{name: parts[name][row] for name in parts} for row in range(len(self.sizes))]


class DenseDataset(Dataset[DenseBatch]):
    """Return a `DenseBatch` for a `BatchRequest`; an unreadable image is replaced and reported.

    Args:
        samples: the annotated images.
        canvas: (H, W) of each image of a batch.
        chans: number of channels.
        fill: value of the padding, for each channel, where 8-bit values are 0..1.
    """

    def __init__(self, samples: Samples, canvas: Size, chans: int, fill: Sequence[float]) -> None:
        self.samples = samples
        self.canvas = canvas
        self.chans = chans
        self.fill = tuple(fill)

    def __getitem__(self, draw: BatchRequest) -> DenseBatch:
        loaded: list[Sample] = []

        def load(candidate: int, row: int, seeds: tuple[int, ...]) -> None:
            del row
            loaded.append(self.samples.load(candidate, seeds))

        read = read_all(draw, self.samples.indices, self.samples.source, load)
        return collate(loaded, self.canvas, self.fill, read.shown, read.tried, read.unreadable)


def collate(
    loaded: Sequence[Sample],
    canvas: Size,
    fill: Sequence[float],
    shown: NDArray[np.int64],
    tried: NDArray[np.int64],
    unreadable: list[UnreadableRecord],
) -> DenseBatch:
    """Put samples on canvases filled with ``fill``, and concatenate their annotations."""
    board = Canvas(len(loaded), canvas, len(fill))
    for row, sample in enumerate(loaded):
        height, width = sample.pixels.shape[:2]
        if (height, width) == canvas:
            board.put(row, sample.pixels)
            continue
        is_bytes = sample.pixels.dtype == np.uint8
        colour = np.rint(np.multiply(fill, 255)).astype(np.uint8) if is_bytes else np.array(fill, np.float32)
        padded = np.empty((*canvas, len(fill)), sample.pixels.dtype)
        padded[...] = colour
        padded[:height, :width] = sample.pixels
        board.put(row, padded)
    names = loaded[0].arrays if loaded else ()
    return DenseBatch(
        board.batch(len(loaded)),
        [(sample.pixels.shape[0], sample.pixels.shape[1]) for sample in loaded],
        {
            name: torch.from_numpy(np.concatenate([sample.arrays[name] for sample in loaded]))
            for name in names
        },
        {name: [len(sample.arrays[name]) for sample in loaded] for name in names},
        shown,
        tried,
        unreadable,
    )


@dataclass(frozen=True)
class DenseLoader:
    """Feed a training loop with micro-batches of (images, annotations), starting at any step.

    Every draw is a function of (seed, step, position in the whole batch), not of the process.
    """

    dataset: DenseDataset
    batches: Callable[[int], Iterator[tuple[int, NDArray[np.int64]]]]
    """First step -> (step, this rank's image indices), see `train.sampler.InfiniteSampler.batches`."""
    collate: Collate
    unreadable_log: UnreadableLog
    micro_batch: int
    workers: int
    seed: int
    share: Share
    mean: Tensor
    std: Tensor
    avoid_single: bool = False
    """See `train_loader.micro_batches`."""

    def __call__(self, first_step: int) -> Iterator[Iterable[tuple[tuple[Any, ...], int]]]:
        draws = (
            BatchRequest(indices, (CROP_SEED, self.seed, step), self.share.first, self.share.whole)
            for step, indices in self.batches(first_step)
        )
        for batch in answers(self.dataset, draws, self.workers, self.mean.device.type == "cuda"):
            self.unreadable_log.note(batch)
            yield self._micro_batches(batch)

    def _micro_batches(self, batch: DenseBatch) -> Iterator[tuple[tuple[Any, ...], int]]:
        count = len(batch.sizes)
        annotations = batch.annotations(self.mean.device)
        for part in micro_slices(count, self.micro_batch, self.avoid_single):
            images = to_device(batch.pixels_BHWC[part], self.mean, self.std)
            targets = self.collate(annotations[part], batch.sizes[part])
            yield (images, targets), part.stop - part.start


def to_device(pixels_BHWC: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Copy pixels to the device of ``mean`` and normalise them: (B, C, H, W), float32."""
    there = copied_tensors({"pixels": pixels_BHWC}, mean.device)["pixels"]
    return normalised(there.permute(0, 3, 1, 2).contiguous(), mean, std)


class EvalSamples(Protocol):
    """Images to be evaluated or predicted, whole, at a size that depends on the image only."""

    @property
    def source(self) -> ImageSource: ...

    def load_whole(self, index: int) -> tuple[list[Pixels], Size, Arrays]:
        """Return the image at each size, (H, W) of the original, and annotations. Raises UnreadableImage."""
        ...


@dataclass(frozen=True)
class EvalImage:
    """One evaluated image."""

    index: int
    pixels_HWC: list[Tensor]
    """The image at each size, uint8 or float32."""
    original: Size
    """(H, W) of the upright image, in pixels."""
    arrays: dict[str, NDArray[Any]]


@dataclass(frozen=True)
class EvalAnswers:
    """Images as a worker returns them; torch's loader converts the arrays of plain tuples to tensors."""

    images: list[EvalImage]
    unreadable: list[UnreadableRecord]


class EvalDense(Dataset[EvalAnswers]):
    """Return the readable images among the given indices."""

    def __init__(self, samples: EvalSamples) -> None:
        self.samples = samples

    def __getitem__(self, indices: NDArray[np.int64]) -> EvalAnswers:
        images: list[EvalImage] = []
        unreadable: list[UnreadableRecord] = []
        for index in map(int, indices):
            try:
                sizes, original, arrays = self.samples.load_whole(index)
                tensors = [torch.from_numpy(np.require(pixels, requirements=("C", "W"))) for pixels in sizes]
                images.append(EvalImage(index, tensors, original, dict(arrays)))
            except UnreadableImage as error:
                unreadable.append(UnreadableRecord(index, self.samples.source.name(index), str(error)))
        return EvalAnswers(images, unreadable)
