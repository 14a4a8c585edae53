"""`python -m fastmim` is `fastmim`."""

import sys

from fastmim.cli.entry import main

if __name__ == "__main__":
    sys.exit(main())
