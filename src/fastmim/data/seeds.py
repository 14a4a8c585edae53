"""Seeds: one number for each thing that is drawn, so that no two draws share a generator."""

import numpy as np
import torch

# What the seeds of different draws begin with, so that none repeats another.
SPLIT_SEED, HELD_OUT_SEED, CROP_SEED, MASK_SEED, STATS_SEED = range(1, 6)
LABEL_SEED, FEW_SEED, MIX_SEED, PROBE_SEED = range(6, 10)


def seeded_generator(*seeds: int) -> torch.Generator:
    """A torch generator on the CPU whose state is a function of ``seeds``."""
    state = np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))
