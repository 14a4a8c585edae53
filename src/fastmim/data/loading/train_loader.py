"""Load the micro-batches of each training step, and the held-out crops, from a source of images."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastmim.data.loading.dataset import Batch, BatchRequest, CropDataset, copied, load_batches, to_images
from fastmim.data.loading.unreadable import UnreadableLog
from fastmim.data.seeds import CROP_SEED, HELD_OUT_SEED, MIX_SEED, SPLIT_SEED

# (images (B, C, H, W), extra inputs, seeds) -> both, as the module receives them
Mix = Callable[[Tensor, Tensor, tuple[int, ...]], tuple[Tensor, Tensor]]


def identity_pair(images_BCHW: Tensor, extra_inputs: Tensor, _: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return both unchanged."""
    return images_BCHW, extra_inputs


@dataclass(frozen=True)
class Split:
    """Indices of the training images and of the held-out images."""

    training: NDArray[np.int64]
    held_out: NDArray[np.int64]
    shared: bool
    """Whether there is only one image, which serves as both."""


def split_images(count: int, held_out: int, seed: int) -> Split:
    """Hold out ``held_out`` images, at most a tenth of ``count`` (rounded up), drawn by ``seed``."""
    order = np.random.default_rng([SPLIT_SEED, seed]).permutation(count)
    if count == 1:
        return Split(order, order, shared=True)
    kept = min(held_out, -(-count // 10))
    return Split(np.sort(order[kept:]), order[:kept], shared=False)


def held_out_crops(crops: CropDataset, count: int, seed: int, unreadable_log: UnreadableLog | None) -> Batch:
    """Return ``count`` fixed crops of the held-out images, cycling through the images as often as needed."""
    indices = np.resize(crops.pool, count)
    batch = crops[BatchRequest(indices, (HELD_OUT_SEED, seed))]
    if unreadable_log is not None:
        unreadable_log.note(batch)
    return batch


def micro_batches(count: int, most: int, avoid_single: bool) -> list[int]:
    """Cut ``count`` images into the fewest, most even parts of at most ``most`` images.

    Args:
        avoid_single: if ``most`` is 2 and ``count`` is odd, make the last part 3 images, since any other
            split leaves one image alone.
    """
    if avoid_single and most == 2 and count % 2 and count > 1:
        return [2] * (count // 2 - 1) + [3]
    parts = -(-count // most)
    least, larger = divmod(count, parts)
    return [least + 1] * larger + [least] * (parts - larger)


def micro_slices(count: int, most: int, avoid_single: bool) -> Iterator[slice]:
    """Yield the slices of a batch that `micro_batches` describes."""
    ends = itertools.accumulate(micro_batches(count, most, avoid_single))
    for start, end in itertools.pairwise([0, *ends]):
        yield slice(start, end)


@dataclass(frozen=True)
class Share:
    """One process's part of each batch."""

    first: int
    """Position of the part's first image in the whole batch."""
    count: int
    whole: int
    """Number of images in the whole batch, over all processes."""

    @classmethod
    def of(cls, batch_size: int, rank: int, world: int) -> "Share":
        count = batch_size // world
        return cls(rank * count, count, batch_size)

    @property
    def part(self) -> slice:
        return slice(self.first, self.first + self.count)


@dataclass(frozen=True)
class TrainLoader:
    """Feed a training loop with micro-batches of (images, extra inputs), starting at any step.

    Every draw is a function of (seed, step, position in the whole batch), not of the process.
    """

    crops: CropDataset
    batches: Callable[[int], Iterator[tuple[int, NDArray[np.int64]]]]
    """First step -> (step, this rank's image indices), see `train.sampler.InfiniteSampler.batches`."""
    extra_inputs: Callable[[Batch, int], Tensor]
    """(batch, step) -> the module's input alongside these images, (B, ...), on the CPU: masks or classes."""
    unreadable_log: UnreadableLog
    micro_batch: int
    workers: int
    seed: int
    share: Share
    mean: Tensor
    std: Tensor
    mix: Mix = identity_pair
    avoid_single: bool = False
    """Prefer a micro-batch with one image too many to a single image: batch norm has no variance of one."""

    def __call__(self, first_step: int) -> Iterator[Iterable[tuple[tuple[Tensor, ...], int]]]:
        draws = (
            BatchRequest(indices, (CROP_SEED, self.seed, step), self.share.first, self.share.whole)
            for step, indices in self.batches(first_step)
        )
        on_gpu = self.mean.device.type == "cuda"
        for step, batch in enumerate(load_batches(self.crops, draws, self.workers, on_gpu), first_step):
            self.unreadable_log.note(batch)
            extra_inputs = self.extra_inputs(batch, step)
            yield self._micro_batches(batch, extra_inputs.pin_memory() if on_gpu else extra_inputs, step)

    def _micro_batches(
        self, batch: Batch, extra_inputs: Tensor, step: int
    ) -> Iterator[tuple[tuple[Tensor, ...], int]]:
        count = len(batch.flips_B)
        extra_inputs = extra_inputs.to(self.mean.device, non_blocking=True)
        for part in micro_slices(count, self.micro_batch, self.avoid_single):
            images = to_images(copied(batch.part(part), self.mean.device), self.mean, self.std)
            place = self.share.first + part.start
            pair = self.mix(images, extra_inputs[part], (MIX_SEED, self.seed, step, place))
            yield pair, part.stop - part.start
