"""Seeds of the random draws: one number for each kind of draw, so that no two kinds share a generator."""

import numpy as np
import torch

# The first seed of each kind of draw, so that no kind repeats the numbers of another.
SPLIT_SEED, HELD_OUT_SEED, CROP_SEED, MASK_SEED, STATS_SEED = range(1, 6)
LABEL_SEED, FEW_SEED, MIX_SEED, PROBE_SEED = range(6, 10)


def seeded_generator(*seeds: int) -> torch.Generator:
    """Return a torch generator on the CPU whose state is a function of ``seeds``."""
    state = np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))
