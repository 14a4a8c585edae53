"""`fastmim backbones`."""

import json
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fastmim.bench import contract as backbones
from fastmim.cli.flags import parse
from fastmim.errors import UsageError


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
        every: int = 1
        """Only every so many of the names."""
        json: bool = False
        """A JSON object a line."""
        write: str | None = None
        """With --check: also write the table, as Markdown, to this file."""
        processes: int = os.cpu_count() or 1
        """Backbones that are tried at a time."""

    command = parse(Command, arguments, "fastmim backbones", Command())
    if command.processes < 1:
        raise UsageError(f"processes = {command.processes} must be at least 1")
    if command.every < 1:
        raise UsageError(f"every = {command.every} must be at least 1")
    if command.pretrain and not command.check:
        raise UsageError("pretrain needs --check")
    if command.write and not command.check:
        raise UsageError("write needs --check: the file says what passed")
    names = backbones.names_like(command.filter)
    if command.families:
        names = backbones.smallest_of_each_family(names, command.processes)
    names = names[:: command.every]
    if not command.json:
        print(backbones.HEADER)
    if not command.check:
        for known in backbones.each(backbones.look_up, names, command.processes):
            line = json.dumps(backbones.as_mapping(known)) if command.json else backbones.as_line(known)
            print(line, flush=True)
        return 0
    found = []
    way = backbones.check_by_pretraining if command.pretrain else backbones.look_up_and_check
    for known, check in backbones.each(way, names, command.processes):
        found.append((known, check))
        if command.json:
            more = {"passed": check.passed, "verdict": str(check)}
            print(json.dumps(backbones.as_mapping(known) | more), flush=True)
        else:
            print(f"{backbones.as_line(known)}; {check}", flush=True)
    if command.write:
        Path(command.write).write_text(
            backbones.as_markdown(found, shlex.join(["fastmim", "backbones", *arguments]))
        )
    return 0 if all(check.passed for _, check in found) else 1
