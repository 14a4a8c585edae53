"""`fastmim backbones`."""

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
    @dataclass(frozen=True)
    class Command:
        """Name, millions of parameters (without a classifier), stride, and image sizes that work."""

        filter: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILTER")] = ""
        """A part of a name, or a pattern as 'resnet*d'. Default: all of timm."""
        families: bool = False
        """Of each family, only the model with the fewest parameters."""
        check: bool = False
        """Pre-train each for one step, export and reload it, and say whether it passed."""
        pretrain: bool = False
        """With --check: try each by `fastmim pretrain` in a process of its own, kernels measured."""
        every: PositiveInt = 1
        """Only every so many of the names."""
        json: bool = False
        """A JSON object a line."""
        write: str | None = None
        """With --check: also write the table, as Markdown, to this file."""
        processes: PositiveInt = os.cpu_count() or 1
        """Backbones that are tried at a time."""

    command = parse(Command, arguments, "fastmim backbones", Command())
    if command.pretrain and not command.check:
        raise UsageError("pretrain needs --check")
    if command.write and not command.check:
        raise UsageError("write needs --check: the file says what passed")
    page = Path(command.write) if command.write else None
    if page is not None:
        check_place("write", page)
    from fastmim.bench.backbones import check_backbones, choose_backbones, list_backbones

    names = choose_backbones(command.filter, command.families, command.every, command.processes)
    if not command.check:
        list_backbones(names, command.processes, command.json)
        return 0
    line = shlex.join(["fastmim", "backbones", *arguments])
    passed = check_backbones(names, command.processes, command.json, command.pretrain, page, line)
    return 0 if passed else 1
