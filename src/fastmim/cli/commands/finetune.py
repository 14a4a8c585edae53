"""The `fastmim finetune` command."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from fastmim.cli.flags import asked, parse, peek
from fastmim.cli.loading import announce_torch
from fastmim.config import FinetuneConfig
from fastmim.config.usage import check_finetuning
from fastmim.errors import UsageError
from fastmim.recipes import base_config, recipe, smoke_finetuning
from fastmim.train.settings import Resume, StartMode


def run(arguments: list[str]) -> int:
    """Run `fastmim finetune` and return its exit code."""

    @dataclass(frozen=True)
    class Command:
        """Fine-tune a pre-trained backbone for classification, or train it from scratch."""

        settings: Annotated[FinetuneConfig, tyro.conf.arg(name="")]
        config: str | None = None
        """YAML file with settings; flags override it. A run's own config.yaml repeats the run."""
        recipe: str | None = None
        """Recipe to start from (`fastmim recipes` lists them)."""
        smoke: bool = False
        """Test the recipe with a narrow backbone: two steps from scratch on a CPU.
        Default --data: demo:digits."""
        resume: bool = False
        """Resume the run in --out."""
        resume_or_begin: bool = False
        """Resume the run in --out if there is one, else start it."""
        overwrite: bool = False
        """Delete the run in --out and start a new one."""
        quiet: bool = False
        """Print errors only."""
        trust_code: bool = False
        """Import and call any factory (package.module:function) of --encoder, --config or a resumed run.
        Default: only the one given as --model."""

    # Collect the defaults: --config, --recipe, a resumed run.
    given = peek(arguments, "config", "recipe", "out", "model")
    resumed = given["out"] if asked(arguments, "resume") or asked(arguments, "resume-or-begin") else None
    trusted = asked(arguments, "trust-code")
    base = base_config(
        FinetuneConfig, given["config"], given["recipe"], resumed, given=given, trust_code=trusted
    )
    if "--smoke" in arguments:
        if not given["recipe"]:
            raise UsageError("--smoke tries a recipe: give --recipe NAME; `fastmim recipes` lists them")
        base = smoke_finetuning(base, recipe(given["recipe"]).backbone)
    # Parse and check the flags, before torch is loaded.
    command = parse(Command, arguments, "fastmim finetune", Command(base))
    resume: Resume = "or-begin" if command.resume_or_begin else command.resume
    start = StartMode(resume, command.overwrite, command.quiet)
    check_finetuning(command.settings, start)
    announce_torch("finetune", command.quiet)
    from fastmim.downstream.classification.entry import run_finetuning

    # Train.
    result = run_finetuning(command.settings, start, trust_code=command.trust_code)
    return 128 + result.stopped_by if result.stopped_by is not None and not result.complete else 0
