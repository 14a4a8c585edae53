"""The `fastmim detect` command."""

from fastmim.cli.training import Runner, run_training
from fastmim.config import DetectConfig

DESCRIPTION = "Train Mask R-CNN or Faster R-CNN on a backbone for object detection."


def run(arguments: list[str]) -> int:
    """Run `fastmim detect` and return its exit code."""
    return run_training(arguments, DetectConfig, DESCRIPTION, _runner)


def _runner() -> Runner:
    from fastmim.downstream.detection.entry import run_detection

    return lambda config, start, trust_code: run_detection(config, start, trust_code=trust_code)
