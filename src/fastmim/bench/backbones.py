"""List backbones and check them with a step of pre-training; output as lines, JSON or a Markdown page."""

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import timm
import torch

from fastmim.bench.contract import Check, check_by_pretraining, look_up_and_check
from fastmim.encoders.catalogue import Backbone, each, look_up, names_like, smallest_of_each_family
from fastmim.errors import UsageError
from fastmim.system.documents import read_text
from fastmim.system.files import write_atomically
from fastmim.system.markdown import table

Row = tuple[str, ...]
HEADING = ("family", "model", "M parameters", "stride", "levels", "sizes that work", "verdict")
PASSED = "pre-trains at "
MOST_PAGE = 1 << 24  # bytes
HEADER = f"{'name':<40} {'M':>6} {'stride':>6}  sizes that work"


def choose_backbones(part: str, families: bool, every: int, processes: int) -> list[str]:
    """Select the models whose name contains ``part`` or matches it as a pattern.

    Args:
        families: keep only the smallest model of each family.
        every: keep every n-th of the remaining names.
    """
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
    names: Sequence[str],
    processes: int,
    as_json: bool,
    by_command: bool,
    page: Path | None,
    command: str,
    resume: bool = False,
) -> bool:
    """Pre-train each backbone for one step and print a line with the verdict.

    Args:
        by_command: run `fastmim pretrain`, in a separate process for each backbone.
        page: Markdown file, rewritten after each backbone, so that an interrupted check keeps its results.
        command: command line that the page cites.
        resume: keep the rows of ``page`` that passed, and check only the other backbones.

    Returns:
        True if all backbones passed.

    Raises:
        UsageError: the page to resume is of another command, or of other versions of timm or torch.
    """
    rows = passed_rows(page, command) if page is not None and resume else {}
    if rows:
        print(f"{len(rows)} of {len(names)} passed already: {page}", file=sys.stderr)
    names = [name for name in names if name not in rows]
    if not as_json:
        print(HEADER)
    passed = True
    way = check_by_pretraining if by_command else look_up_and_check
    for known, check in each(way, names, processes):
        passed &= check.passed
        rows[known.name] = as_row(known, check)
        if page is not None:
            write_atomically(page, partial(_write, as_markdown(list(rows.values()), command).encode()))
        if as_json:
            more = {"passed": check.passed, "verdict": str(check)}
            print(json.dumps(as_mapping(known) | more), flush=True)
        else:
            print(f"{as_line(known)}; {check}", flush=True)
    return passed


def _write(text: bytes, file: IO[bytes]) -> None:
    file.write(text)


def as_line(backbone: Backbone) -> str:
    """Format a backbone as a row under HEADER."""
    stride = backbone.sizes.stride if backbone.sizes else "-"
    sizes = backbone.sizes if backbone.sizes else f"none: {backbone.reason}"
    return f"{backbone.name:<40} {backbone.parameters:>6.1f} {stride:>6}  {sizes}"


def as_mapping(backbone: Backbone) -> dict[str, Any]:
    """Return the mapping that `fastmim backbones --json` prints for a backbone."""
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


def as_row(known: Backbone, check: Check) -> Row:
    """Return a row of the page."""
    return (
        known.family,
        known.name,
        f"{known.parameters:.1f}",
        str(known.sizes.stride if known.sizes else "-"),
        str(known.levels or "-"),
        str(known.sizes or "none"),
        str(check),
    )


def as_markdown(rows: Sequence[Row], command: str) -> str:
    """Return the page docs/backbones.md, which cites ``command``, without its ``--resume``."""
    passed = sum(row[-1].startswith(PASSED) for row in rows)
    lines = [
        *_introduction(command),
        f"{_versions()}: {passed} of {len(rows)} pass.",
        "",
        table(HEADING, rows, "llrrrll"),
    ]
    return "\n".join(lines) + "\n"


def passed_rows(page: Path, command: str) -> dict[str, Row]:
    """Read the rows of a page that passed, by the model's name; none if there is no page yet.

    Raises:
        UsageError: the page is of another command, or of other versions of timm or torch.
    """
    if not page.exists():
        return {}
    text = read_text(page, MOST_PAGE)
    if not text.startswith("\n".join([*_introduction(command), f"{_versions()}: "])):
        raise UsageError(
            f"write = {page}: it is not a page of this command, timm and torch; give another file"
        )
    lines = (tuple(cell.strip() for cell in line.strip("|").split(" | ")) for line in text.splitlines())
    return {row[1]: row for row in lines if len(row) == len(HEADING) and row[-1].startswith(PASSED)}


def _introduction(command: str) -> list[str]:
    return [
        "# Backbones",
        "",
        "Each model is pre-trained for one step on a CPU, exported and reloaded strictly. With --families:",
        "one small model per architecture family (a module of timm, or of this package). Levels are those",
        "of layer decay: stem, blocks, head. Generated by",
        "",
        f"    {command.replace(' --resume', '')}",
        "",
    ]


def _versions() -> str:
    return f"timm {timm.__version__}, torch {torch.__version__.partition('+')[0]}"
