from fastmim.cli.entry import main

__all__ = ["main"]
