"""From a source of images to the micro-batches of each step, and the held-out crops beside them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastmim.data.loader import Batch, Crops, Draw, load_batches, to_images
from fastmim.data.skips import SkipList

# What the seeds of different draws begin with, so that none repeats another.
SPLIT_SEED, HELD_OUT_SEED, CROP_SEED, MASK_SEED, STATS_SEED = 1, 2, 3, 4, 5

MaskDraw = Callable[[torch.Generator, int], Tensor]  # (generator, batch) -> (batch, h, w)


@dataclass(frozen=True)
class Split:
    """Which images train and which are only measured on."""

    training: NDArray[np.int64]
    held_out: NDArray[np.int64]
    shared: bool
    """Only one image: it has to serve for both."""


def split_images(count: int, held_out: int, seed: int) -> Split:
    """Keep ``held_out`` images, at most a tenth (rounded up), drawn by ``seed``."""
    order = np.random.default_rng([SPLIT_SEED, seed]).permutation(count)
    if count == 1:
        return Split(order, order, shared=True)
    kept = min(held_out, -(-count // 10))
    return Split(np.sort(order[kept:]), order[:kept], shared=False)


def seeded_generator(*seeds: int) -> torch.Generator:
    """A torch generator on the CPU whose state is a function of ``seeds``."""
    state = np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def held_out_crops(crops: Crops, count: int, seed: int, skips: SkipList | None) -> Batch:
    """``count`` fixed crops of the held-out images, as many of each as needed."""
    indices = np.resize(crops.pool, count)
    batch = crops[Draw(indices, (HELD_OUT_SEED, seed))]
    if skips is not None:
        skips.note(batch)
    return batch


@dataclass(frozen=True)
class Feeder:
    """Feeds a training loop: (images, mask) in micro-batches, from any step on.

    Crops are seeded by (seed, step, rank), masks by (seed, rank, step).
    """

    crops: Crops
    batches: Callable[[int], Iterator[tuple[int, NDArray[np.int64]]]]
    """First step -> (step, this rank's images of its batch), see `train.sampler.Stream.batches`."""
    draw_mask: MaskDraw
    skips: SkipList
    micro_batch: int
    workers: int
    seed: int
    rank: int
    mean: Tensor
    std: Tensor

    def __call__(self, first_step: int) -> Iterator[Iterable[tuple[tuple[Tensor, ...], float, bool]]]:
        draws = (
            Draw(indices, (CROP_SEED, self.seed, step, self.rank))
            for step, indices in self.batches(first_step)
        )
        on_gpu = self.mean.device.type == "cuda"
        for step, batch in enumerate(load_batches(self.crops, draws, self.workers, on_gpu), first_step):
            self.skips.note(batch)
            generator = seeded_generator(MASK_SEED, self.seed, self.rank, step)
            mask = self.draw_mask(generator, len(batch.flips_B))
            yield self._micro_batches(batch, mask.pin_memory() if on_gpu else mask)

    def _micro_batches(
        self, batch: Batch, mask_Bhw: Tensor
    ) -> Iterator[tuple[tuple[Tensor, ...], float, bool]]:
        count = len(batch.flips_B)
        mask_Bhw = mask_Bhw.to(self.mean.device, non_blocking=True)
        for start in range(0, count, self.micro_batch):
            part = slice(start, min(start + self.micro_batch, count))
            piece = Batch(batch.pixels_BHWC[part], batch.flips_B[part], batch.tried, [])
            images = to_images(piece, self.mean, self.std)
            yield (images, mask_Bhw[part]), (part.stop - part.start) / count, part.stop == count
