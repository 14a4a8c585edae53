"""How the threads of a CPU's computations wait for one another: told before PyTorch is loaded.

By default they wait by computing, for milliseconds, which is quickest where nothing else runs. Beside
another busy process one of them has no processor, and the others burn theirs while they wait for it.
A short wait of that kind, and then sleep, costs little alone and much less in company:
`fastmim bench shared` measures it.
"""

import os
import sys

POLICY = "OMP_WAIT_POLICY"
SPIN = "GOMP_SPINCOUNT"  # of GNU's OpenMP, which PyTorch's wheels have on Linux; comes before POLICY there
BLOCK_TIME = "KMP_BLOCKTIME"  # of LLVM's
THREADS = "OMP_NUM_THREADS"
BRIEFLY = {POLICY: "PASSIVE", SPIN: "1000"}  # rounds: some microseconds


def wait_briefly() -> None:
    """Have waiting threads soon sleep, unless PyTorch is loaded or the user has said how they wait."""
    if "torch" not in sys.modules and not {POLICY, SPIN, BLOCK_TIME} & os.environ.keys():
        os.environ.update(BRIEFLY)
