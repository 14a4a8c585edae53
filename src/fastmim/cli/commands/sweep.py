"""The `fastmim sweep` command."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fastmim.cli.flags import asked, parse, peek
from fastmim.cli.loading import announce_torch
from fastmim.config import FinetuneConfig
from fastmim.recipes import base_config
from fastmim.studies.settings import SweepConfig, check_sweep

PLOT = "sweep.png"


def run(arguments: list[str]) -> int:
    """Run `fastmim sweep` and return its exit code."""

    @dataclass(frozen=True)
    class Command:
        """Search base learning rate and layer decay on a grid (paper: appendix A.3.3).

        All other options are those of `fastmim finetune`. Machines that share --storage share the work; the
        same command resumes a search that was stopped.
        """

        settings: Annotated[FinetuneConfig, tyro.conf.arg(name="")]
        grid: Annotated[SweepConfig, tyro.conf.arg(name="")]
        config: str | None = None
        """YAML file with settings of fine-tuning; flags override it."""
        recipe: str | None = None
        """Recipe to start from (`fastmim recipes` lists them)."""
        quiet: bool = False
        """Print the result of each grid point only."""
        trust_code: bool = False
        """Import and call any factory (package.module:function) that an encoder or --config names.
        Default: only the one given as --model."""

    # Collect the defaults: --config, --recipe.
    given = peek(arguments, "config", "recipe", "model")
    trusted = asked(arguments, "trust-code")
    base = base_config(
        FinetuneConfig, given["config"], given["recipe"], None, given=given, trust_code=trusted
    )
    # Parse and check the flags, before torch is loaded.
    command = parse(Command, arguments, "fastmim sweep", Command(base, SweepConfig()))
    check_sweep(command.settings)
    announce_torch("sweep", command.quiet)
    from fastmim.studies.plots import write_heat_map
    from fastmim.studies.sweep import SWEEP, sweep

    found = sweep(command.settings, command.grid, command.quiet, trust_code=command.trust_code)
    # Write the plot and print the best point.
    out = Path(command.settings.out).expanduser()
    write_heat_map(out / PLOT, found.accuracy)
    rate, decay = found.best
    print(f"best: base_lr {rate:g}, layer_decay {decay:g}, top-1 {found.accuracy[found.best]:.2f} %")
    if found.stopped_growing:
        print("the best point lies on the grid's border: raise --max-trials to continue")
    print(f"{out / SWEEP}, {out / PLOT}: the search")
    return 0
