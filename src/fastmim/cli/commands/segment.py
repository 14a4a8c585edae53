"""The `fastmim segment` command."""

from fastmim.cli.training import Runner, run_training
from fastmim.config import SegmentConfig

DESCRIPTION = "Train UperNet on a backbone for semantic segmentation."


def run(arguments: list[str]) -> int:
    """Run `fastmim segment` and return its exit code."""
    return run_training(arguments, SegmentConfig, DESCRIPTION, _runner)


def _runner() -> Runner:
    from fastmim.downstream.segmentation.entry import run_segmentation

    return lambda config, start, trust_code: run_segmentation(config, start, trust_code=trust_code)
