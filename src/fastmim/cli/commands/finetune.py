"""The `fastmim finetune` command."""

from fastmim.cli.training import Runner, run_training
from fastmim.config import FinetuneConfig

DESCRIPTION = "Fine-tune a pre-trained backbone for classification, or train it from scratch."


def run(arguments: list[str]) -> int:
    """Run `fastmim finetune` and return its exit code."""
    return run_training(arguments, FinetuneConfig, DESCRIPTION, _runner)


def _runner() -> Runner:
    from fastmim.downstream.classification.entry import run_finetuning

    return lambda config, start, trust_code: run_finetuning(config, start, trust_code=trust_code)
