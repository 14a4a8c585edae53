"""`fastmim backbones`."""

import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Annotated, Any

import timm
import torch
import tyro

from fastmim.bench.contract import Check, check_by_pretraining, look_up_and_check
from fastmim.cli.flags import check_place, parse
from fastmim.encoders.catalogue import Backbone, each, look_up, names_like, smallest_of_each_family
from fastmim.errors import UsageError
from fastmim.system.files import write_atomically
from fastmim.system.markdown import table


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
    page = Path(command.write) if command.write else None
    if page is not None:
        check_place("write", page)
    names = names_like(command.filter)
    if command.families:
        names = smallest_of_each_family(names, command.processes)
    names = names[:: command.every]
    if not command.json:
        print(HEADER)
    if not command.check:
        for known in each(look_up, names, command.processes):
            line = json.dumps(as_mapping(known)) if command.json else as_line(known)
            print(line, flush=True)
        return 0
    found = []
    way = check_by_pretraining if command.pretrain else look_up_and_check
    for known, check in each(way, names, command.processes):
        found.append((known, check))
        if page is not None:  # each time: whoever stops this keeps what was found
            text = as_markdown(found, shlex.join(["fastmim", "backbones", *arguments])).encode()
            write_atomically(page, partial(_write, text))
        if command.json:
            more = {"passed": check.passed, "verdict": str(check)}
            print(json.dumps(as_mapping(known) | more), flush=True)
        else:
            print(f"{as_line(known)}; {check}", flush=True)
    return 0 if all(check.passed for _, check in found) else 1


def _write(text: bytes, file: IO[bytes]) -> None:
    file.write(text)


HEADER = f"{'name':<40} {'M':>6} {'stride':>6}  sizes that work"


def as_line(backbone: Backbone) -> str:
    """A row under HEADER."""
    stride = backbone.sizes.stride if backbone.sizes else "-"
    sizes = backbone.sizes if backbone.sizes else f"none: {backbone.reason}"
    return f"{backbone.name:<40} {backbone.parameters:>6.1f} {stride:>6}  {sizes}"


def as_mapping(backbone: Backbone) -> dict[str, Any]:
    """What `fastmim backbones --json` prints of a backbone."""
    sizes = backbone.sizes
    return {
        "name": backbone.name,
        "family": backbone.family,
        "parameters_m": round(backbone.parameters, 3),
        "stride": sizes.stride if sizes else None,
        "width": sizes.width if sizes else None,
        "levels": backbone.levels or None,
        "sizes": list(sizes.working) if sizes else [],
        "failing": {str(side): why for side, why in sizes.failing.items()} if sizes else {},
        "reason": backbone.reason or None,
    }


def as_markdown(checks: Sequence[tuple[Backbone, Check]], command: str) -> str:
    """The page docs/backbones.md, written by ``command``."""
    passed = sum(check.passed for _, check in checks)
    heading = ("family", "model", "M parameters", "stride", "levels", "sizes that work", "verdict")
    rows = [
        (
            known.family,
            known.name,
            f"{known.parameters:.1f}",
            str(known.sizes.stride if known.sizes else "-"),
            str(known.levels or "-"),
            str(known.sizes or "none"),
            str(check),
        )
        for known, check in checks
    ]
    lines = [
        "# Backbones",
        "",
        "Each model is pre-trained for one step on a CPU, exported and reloaded strictly. With --families:",
        "one small model per architecture family (a module of timm, or of this package). Levels are those",
        "of layer decay: stem, blocks, head. Generated by",
        "",
        f"    {command}",
        "",
        f"timm {timm.__version__}, torch {torch.__version__.partition('+')[0]}: "
        f"{passed} of {len(checks)} pass.",
        "",
        table(heading, rows, "llrrrll"),
    ]
    return "\n".join(lines) + "\n"
