"""Data order: an endless stream of positions, cut into batches.

Epoch e is a permutation of the data drawn from (seed, e). A step's batch is the next ``batch_size`` positions
of the stream. Batches cross epoch boundaries, no image is dropped, and p is all that a run needs to resume at
position p.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fastmim.train.stages import Stage


class InfiniteSampler:
    """Maps positions 0, 1, 2, ... to entries of ``pool``, in a new order for each epoch."""

    def __init__(self, pool: NDArray[np.int64], seed: int) -> None:
        self.pool = pool
        self.seed = seed
        self._epoch = -1
        self._order = pool

    def _order_of(self, epoch: int) -> NDArray[np.int64]:
        if epoch != self._epoch:
            self._order = np.random.default_rng([self.seed, epoch]).permutation(self.pool)
            self._epoch = epoch
        return self._order

    def take(self, start: int, count: int) -> NDArray[np.int64]:
        """Return the entries at positions start .. start+count-1."""
        pieces = []
        while count > 0:
            epoch, offset = divmod(start, len(self.pool))
            piece = self._order_of(epoch)[offset : offset + count]
            pieces.append(piece)
            start += len(piece)
            count -= len(piece)
        return np.concatenate(pieces)

    def batches(
        self, stage: Stage, first_step: int, part: slice = slice(None)
    ) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Yield (step, ``part`` of the step's batch) for the steps of ``stage`` from ``first_step`` on."""
        start, stop, _ = part.indices(stage.batch_size)
        for step in range(first_step, stage.last_step):
            yield step, self.take(stage.samples_before(step) + start, stop - start)
