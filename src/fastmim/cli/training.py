"""Commands that train on a pre-trained backbone: the same flags around the configuration of each task."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import tyro

from fastmim.cli.flags import asked, parse, peek
from fastmim.cli.loading import announce_torch
from fastmim.config import TransferConfig
from fastmim.config.usage import check_transfer
from fastmim.errors import UsageError
from fastmim.recipes import base_config, recipe, smoke_transfer
from fastmim.train.settings import Resume, StartMode

C = TypeVar("C", bound=TransferConfig)
Runner = Callable[[Any, StartMode, bool], Any]
"""(configuration, start, trust in code) -> the run's result."""


def run_training(
    arguments: list[str], config_class: type[C], description: str, load_runner: Callable[[], Runner]
) -> int:
    """Parse the flags of a command, run its task, and return the exit code.

    Args:
        config_class: settings of the task.
        description: first line of the help text.
        load_runner: imports the function that runs a configuration, and torch with it.
    """

    @dataclass(frozen=True)
    class Command:
        settings: Annotated[config_class, tyro.conf.arg(name="")]  # type: ignore[valid-type]
        config: str | None = None
        """YAML file with settings; flags override it. A run's own config.yaml repeats the run."""
        recipe: str | None = None
        """Recipe to start from (`fastmim recipes` lists them)."""
        smoke: bool = False
        """Test the recipe with a narrow backbone: two steps from scratch on a CPU.
        For classification, --data is demo:digits by default."""
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

    Command.__doc__ = description
    # Collect the defaults: --config, --recipe, a resumed run.
    given = peek(arguments, "config", "recipe", "out", "model")
    resumed = given["out"] if asked(arguments, "resume") or asked(arguments, "resume-or-begin") else None
    trusted = asked(arguments, "trust-code")
    base = base_config(
        config_class, given["config"], given["recipe"], resumed, given=given, trust_code=trusted
    )
    if "--smoke" in arguments:
        if not given["recipe"]:
            raise UsageError("--smoke tries a recipe: give --recipe NAME; `fastmim recipes` lists them")
        base = smoke_transfer(base, recipe(given["recipe"]).backbone)
    # Parse and check the flags, before torch is loaded.
    verb = config_class.verb
    command = parse(Command, arguments, f"fastmim {verb}", Command(base))
    resume: Resume = "or-begin" if command.resume_or_begin else command.resume
    start = StartMode(resume, command.overwrite, command.quiet)
    check_transfer(command.settings, start)
    announce_torch(verb, command.quiet)
    # Train.
    result = load_runner()(command.settings, start, command.trust_code)
    return 128 + result.stopped_by if result.stopped_by is not None and not result.complete else 0
