"""The `fastmim payoff` command."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from fastmim.cli.flags import asked, parse, peek
from fastmim.cli.loading import announce_torch
from fastmim.errors import UsageError
from fastmim.recipes import base_config
from fastmim.studies.settings import TASKS, PayoffConfig, check_payoff

if TYPE_CHECKING:
    from fastmim.config import TransferConfig

PLOT, TABLE = "payoff.png", "payoff.md"
DESCRIPTION = """Compare training on --encoder with training from scratch, with few and with many labels.

All other options are those of `fastmim {verb}`. Finished runs in --out are kept: the same command resumes a
comparison that was stopped.
"""


def run(arguments: list[str]) -> int:
    """Run `fastmim payoff` and return its exit code."""
    task = peek(arguments, "task")["task"] or "classify"
    if task not in TASKS:
        raise UsageError(f"task = {task} must be one of {', '.join(TASKS)}")
    config_class = TASKS[task]

    @dataclass(frozen=True)
    class Command:
        settings: Annotated[config_class, tyro.conf.arg(name="")]  # type: ignore[valid-type]
        compare: Annotated[PayoffConfig, tyro.conf.arg(name="")]
        task: Literal["classify", "detect", "segment"] = "classify"
        """What the backbone is trained for; its options are those of `fastmim finetune`, `detect` or
        `segment`."""
        config: str | None = None
        """YAML file with settings of the task; flags override it."""
        recipe: str | None = None
        """Recipe to start from (`fastmim recipes` lists them)."""
        quiet: bool = False
        """Print the result only."""
        trust_code: bool = False
        """Import and call any factory (package.module:function) that an encoder or --config names.
        Default: only the one given as --model."""

    Command.__doc__ = DESCRIPTION.format(verb=config_class.verb)
    # Collect the defaults: --config, --recipe.
    given = peek(arguments, "config", "recipe", "model")
    trusted = asked(arguments, "trust-code")
    base = base_config(config_class, given["config"], given["recipe"], None, given=given, trust_code=trusted)
    # Parse and check the flags, before torch is loaded.
    command = parse(Command, arguments, "fastmim payoff", Command(base, PayoffConfig()))
    settings: TransferConfig = command.settings
    check_payoff(settings, command.compare)
    announce_torch("payoff", command.quiet)
    from fastmim.studies.comparison import as_table, interval_note
    from fastmim.studies.payoff import PAYOFF, payoff
    from fastmim.studies.plots import write_payoff_plot

    found = payoff(settings, command.compare, command.quiet, trust_code=command.trust_code)
    # Write the table and the plot, and print the verdicts.
    out = Path(settings.out).expanduser()
    text = "\n".join([as_table(found), "", interval_note(found.metric), *found.verdicts])
    (out / TABLE).write_text(text + "\n")
    write_payoff_plot(out / PLOT, found)
    print(f"\n{text}\n\n{out / PAYOFF}, {out / TABLE}, {out / PLOT}: the comparison")
    return 0
