"""Announce that PyTorch is being loaded, which takes seconds, after the usage has been checked."""

import os
import sys


def announce_torch(verb: str, quiet: bool) -> None:
    """Print a line on the first process of a run, unless PyTorch is already loaded."""
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    if not quiet and rank == "0" and "torch" not in sys.modules:
        print(f"fastmim {verb}: loading PyTorch", flush=True)
