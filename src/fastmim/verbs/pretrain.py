"""`fastmim pretrain`."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from fastmim.config import PretrainConfig, merge
from fastmim.errors import UsageError
from fastmim.flags import parse, peek
from fastmim.pretraining import run_pretraining
from fastmim.recipes import base_config, smoke
from fastmim.train.rundir import Resume


def run(arguments: list[str]) -> int:
    @dataclass(frozen=True)
    class Command:
        settings: Annotated[PretrainConfig, tyro.conf.arg(name="")]
        config: str | None = None
        """YAML file with settings; flags win over it. A run's own config.yaml repeats the run."""
        recipe: str | None = None
        """Recipe to start from; `fastmim recipes` lists them."""
        smoke: bool = False
        """Try the recipe, made narrow: two steps or one a stage, on a CPU, on demo:photos without --data."""
        resume: bool = False
        """Go on with the run in --out."""
        resume_or_begin: bool = False
        """Go on with the run in --out if there is one, else begin it."""
        overwrite: bool = False
        """Replace the run in --out."""

    given = peek(arguments, "config", "recipe", "out", "stages", "method")
    resumed = given["out"] if {"--resume", "--resume-or-begin"} & set(arguments) else None
    base = base_config(PretrainConfig, given["config"], given["recipe"], resumed, given["method"])
    if "--smoke" in arguments:
        if not given["recipe"]:
            raise UsageError("--smoke tries a recipe: give --recipe NAME; `fastmim recipes` lists them")
        base = smoke(base)
    if given["stages"] and not resumed:
        base = merge(base, {"stages": given["stages"]})  # in place of the base's one size and length
    command = parse(Command, arguments, "fastmim pretrain", Command(base))
    resume: Resume = "or-begin" if command.resume_or_begin else command.resume
    result = run_pretraining(command.settings, resume, command.overwrite)
    return 128 + result.stopped_by if result.stopped_by is not None and not result.complete else 0
