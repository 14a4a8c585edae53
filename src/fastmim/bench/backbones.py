"""Backbones as lines, JSON or a page: which there are, and which of them pass a step of pre-training."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import timm
import torch

from fastmim.bench.contract import Check, check_by_pretraining, look_up_and_check
from fastmim.encoders.catalogue import Backbone, each, look_up, names_like, smallest_of_each_family
from fastmim.system.files import write_atomically
from fastmim.system.markdown import table

HEADER = f"{'name':<40} {'M':>6} {'stride':>6}  sizes that work"


def choose_backbones(part: str, families: bool, every: int, processes: int) -> list[str]:
    """Names that hold ``part``, or fit it as a pattern; of each family one, and of these every so many."""
    names = names_like(part)
    if families:
        names = smallest_of_each_family(names, processes)
    return names[::every]


def list_backbones(names: Sequence[str], processes: int, as_json: bool) -> None:
    """Print a line for each backbone."""
    if not as_json:
        print(HEADER)
    for known in each(look_up, names, processes):
        print(json.dumps(as_mapping(known)) if as_json else as_line(known), flush=True)


def check_backbones(
    names: Sequence[str], processes: int, as_json: bool, by_command: bool, page: Path | None, command: str
) -> bool:
    """Pre-train each backbone for a step, and print a line with the verdict.

    Args:
        by_command: by `fastmim pretrain`, each in a process of its own.
        page: file that the table is written to after each of them, so that it is kept where this is stopped.
        command: what the page says that it was written by.

    Returns:
        Whether all passed.
    """
    if not as_json:
        print(HEADER)
    found = []
    way = check_by_pretraining if by_command else look_up_and_check
    for known, check in each(way, names, processes):
        found.append((known, check))
        if page is not None:
            write_atomically(page, partial(_write, as_markdown(found, command).encode()))
        if as_json:
            more = {"passed": check.passed, "verdict": str(check)}
            print(json.dumps(as_mapping(known) | more), flush=True)
        else:
            print(f"{as_line(known)}; {check}", flush=True)
    return all(check.passed for _, check in found)


def _write(text: bytes, file: IO[bytes]) -> None:
    file.write(text)


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
        "Pre-trained for one step on a CPU, exported and reloaded strictly; with --families, one small",
        "model of each architecture family (a module of timm, or of this package). Levels are those of",
        "layer decay: stem, blocks, head. Written by",
        "",
        f"    {command}",
        "",
        f"timm {timm.__version__}, torch {torch.__version__.partition('+')[0]}: "
        f"{passed} of {len(checks)} pass.",
        "",
        table(heading, rows, "llrrrll"),
    ]
    return "\n".join(lines) + "\n"
