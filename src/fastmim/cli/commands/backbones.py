"""The `fastmim backbones` command."""

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fastmim.cli.flags import check_place, parse
from fastmim.errors import UsageError
from fastmim.system.bounds import PositiveInt


def run(arguments: list[str]) -> int:
    """Run `fastmim backbones` and return its exit code."""

    @dataclass(frozen=True)
    class Command:
        """List backbones: name, millions of parameters (without classifier), stride and valid image sizes."""

        filter: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILTER")] = ""
        """Part of a name, or a pattern such as 'resnet*d'. Default: all backbones."""
        families: bool = False
        """List only the smallest model (fewest parameters) of each family."""
        check: bool = False
        """Pre-train each backbone for one step, export and reload it, and report whether it passed."""
        pretrain: bool = False
        """With --check: run `fastmim pretrain` for each in a separate process, with kernels measured."""
        every: PositiveInt = 1
        """List only every N-th name."""
        json: bool = False
        """Print one JSON object per line."""
        write: str | None = None
        """With --check: also write the results to this file, as a Markdown table."""
        resume: bool = False
        """With --write: keep the results of the file that passed, and check only the other backbones."""
        processes: PositiveInt = os.cpu_count() or 1
        """Backbones to test in parallel."""

    command = parse(Command, arguments, "fastmim backbones", Command())
    if command.pretrain and not command.check:
        raise UsageError("pretrain needs --check")
    if command.write and not command.check:
        raise UsageError("write needs --check: the file says what passed")
    if command.resume and not command.write:
        raise UsageError("resume needs --write: the file of the check to resume")
    page = Path(command.write) if command.write else None
    if page is not None:
        check_place("write", page)
    from fastmim.bench.backbones import check_backbones, choose_backbones, list_backbones

    names = choose_backbones(command.filter, command.families, command.every, command.processes)
    if not command.check:
        list_backbones(names, command.processes, command.json)
        return 0
    line = shlex.join(["fastmim", "backbones", *arguments])
    passed = check_backbones(
        names, command.processes, command.json, command.pretrain, page, line, command.resume
    )
    return 0 if passed else 1
