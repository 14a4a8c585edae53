"""Command line: one module per verb, imported when the verb runs."""

from fastmim.cli.entry import main

__all__ = ["main"]
