"""The `fastmim pretrain` command."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from fastmim.cli.flags import asked, parse, peek
from fastmim.cli.loading import announce_torch
from fastmim.config import PretrainConfig, merge
from fastmim.config.usage import check_pretraining
from fastmim.errors import UsageError
from fastmim.recipes import base_config, smoke
from fastmim.recipes.base import MODELS
from fastmim.train.settings import Resume, StartMode


def run(arguments: list[str]) -> int:
    """Run `fastmim pretrain` and return its exit code."""

    @dataclass(frozen=True)
    class Command:
        """Pre-train a backbone on unlabelled images."""

        settings: Annotated[PretrainConfig, tyro.conf.arg(name="")]
        config: str | None = None
        """YAML file with settings; flags override it. A run's own config.yaml repeats the run."""
        recipe: str | None = None
        """Recipe to start from (`fastmim recipes` lists them)."""
        smoke: bool = False
        """Test the recipe with a narrow model: two steps, or one per stage, on a CPU.
        Default --data: demo:photos."""
        resume: bool = False
        """Resume the run in --out."""
        resume_or_begin: bool = False
        """Resume the run in --out if there is one, else start it."""
        overwrite: bool = False
        """Delete the run in --out and start a new one."""
        quiet: bool = False
        """Print errors only."""
        trust_code: bool = False
        """Import and call any factory (package.module:function) of --config, a resumed run, the
        teacher or --weights. Default: only those given as --model or --distill.model."""

    # Collect the defaults: --config, --recipe, a resumed run.
    given = peek(arguments, "config", "recipe", "out", "stages", "method", *MODELS)
    resumed = given["out"] if asked(arguments, "resume") or asked(arguments, "resume-or-begin") else None
    trusted = asked(arguments, "trust-code")
    base = base_config(
        PretrainConfig, given["config"], given["recipe"], resumed, given["method"], given, trust_code=trusted
    )
    if "--smoke" in arguments:
        if not given["recipe"]:
            raise UsageError("--smoke tries a recipe: give --recipe NAME; `fastmim recipes` lists them")
        base = smoke(base)
    if given["stages"] and not resumed:
        base = merge(base, {"stages": given["stages"]})  # in place of the base's one size and length
    # Parse and check the flags, before torch is loaded.
    command = parse(Command, arguments, "fastmim pretrain", Command(base))
    resume: Resume = "or-begin" if command.resume_or_begin else command.resume
    start = StartMode(resume, command.overwrite, command.quiet)
    check_pretraining(command.settings, start)
    announce_torch("pretrain", command.quiet)
    from fastmim.pretraining import run_pretraining

    # Train.
    result = run_pretraining(command.settings, start, trust_code=command.trust_code)
    return 128 + result.stopped_by if result.stopped_by is not None and not result.complete else 0
