"""Wait policy of the CPU threads of OpenMP, which has to be set before PyTorch is loaded.

By default, threads spin for milliseconds while they wait for one another, which is fastest on an idle
machine. If another process is busy, one thread has no processor, and the others waste theirs while they wait
for it. A short spin followed by sleep costs little on an idle machine and is much faster on a busy one:
`fastmim bench shared` measures both.
"""

import os
import sys

POLICY = "OMP_WAIT_POLICY"
SPIN = "GOMP_SPINCOUNT"  # of GNU OpenMP, which PyTorch's Linux wheels use; overrides POLICY there
BLOCK_TIME = "KMP_BLOCKTIME"  # of LLVM OpenMP
THREADS = "OMP_NUM_THREADS"
BRIEFLY = {POLICY: "PASSIVE", SPIN: "1000"}  # rounds of spinning: some microseconds


def wait_briefly() -> None:
    """Make waiting threads sleep soon, unless PyTorch is loaded or the user has set a wait policy."""
    if "torch" not in sys.modules and not {POLICY, SPIN, BLOCK_TIME} & os.environ.keys():
        os.environ.update(BRIEFLY)
