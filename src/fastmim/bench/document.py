"""Format benchmark results as a terminal table, as JSON, and as a Markdown page with a plot."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure as Plot
from rich.table import Table

from fastmim.bench.growth import Cost
from fastmim.bench.measure import Figure
from fastmim.bench.methods import LEAST_SHARE, MethodCost
from fastmim.errors import UsageError
from fastmim.system.documents import checked, read_json
from fastmim.system.files import write_atomically
from fastmim.system.markdown import table

GROWTH_NOTE = (
    "One quantity varies at a time. Memory is the growth of the process since before the model was built: "
    "weights, gradients, the optimiser's state and activations."
)
UNITS = {"batch": "images per step", "size": "pixels per side", "depth": "blocks"}


@dataclass
class Results:
    """Results of one benchmark run."""

    machine: dict[str, Any]
    command: str
    date: str
    figures: dict[str, list[Figure]] = field(default_factory=dict)
    """By part: step, hog, loader, packs, memory, shared."""
    notes: dict[str, list[str]] = field(default_factory=dict)
    """By part: the choices made and the data used."""
    growth: dict[str, list[Cost]] = field(default_factory=dict)
    """By the quantity that varies: batch, size, depth."""
    methods: list[MethodCost] = field(default_factory=list)

    def write(self, file: Path) -> None:
        text = json.dumps(asdict(self), indent=1)
        write_atomically(file, lambda target: target.write(text.encode()))


def read_results(file: Path) -> Results:
    """Read a file of `Results.write`. Raises UsageError if it is another file."""
    try:
        return checked(Results, read_json(file), str(file))
    except OSError as error:
        raise UsageError(f"json: {file} cannot be read: {error.strerror}") from error
    except UsageError as error:
        raise UsageError(f"json: {file} was not written by fastmim bench ({error})") from error


def as_table(title: str, lines: Sequence[Figure]) -> Table:
    """Format figures as a terminal table."""
    table = Table(title=title, title_justify="left", show_lines=False)
    table.add_column("what", ratio=4)
    for heading in ("ours", "baseline", "ratio"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("target", ratio=2)
    for line in lines:
        what = f"{line.name}, {line.unit}" + (f"\n  against {line.against}" if line.against else "")
        table.add_row(what, *_numbers(line), _target(line))
    return table


METHOD_COLUMNS = ("recipe", "pixels", "images/s", "time", "multiply-adds", "paper's hours", "peak", "MiB")


def methods_rows(methods: Sequence[MethodCost]) -> list[tuple[str, ...]]:
    """Return one row per method; time, multiply-adds and hours are relative to FastMIM's."""
    fastmim: dict[str, MethodCost] = {}
    rows: list[tuple[str, ...]] = []
    for cost in methods:
        reference = fastmim.setdefault(cost.model, cost)
        rows.append(
            (
                cost.recipe,
                str(cost.size),
                f"{cost.images_per_second:.1f}",
                f"{cost.times_fastmim:.2f}",
                f"{cost.multiply_adds:.2f}",
                f"{cost.paper:.2f}" if cost.paper is not None else "",
                f"{cost.share:.0%}" + ("" if cost.diligent(reference) else " LOW"),
                f"{cost.memory_mib:.0f}",
            )
        )
    return rows


def methods_table(methods: Sequence[MethodCost]) -> Table:
    """Format method costs as a terminal table."""
    table = Table(title="methods, relative to FastMIM on the same backbone", title_justify="left")
    for place, heading in enumerate(METHOD_COLUMNS):
        table.add_column(heading, justify="right" if place else "left", overflow="fold")
    for row in methods_rows(methods):
        table.add_row(*row)
    return table


def _numbers(line: Figure) -> tuple[str, str, str]:
    """Format our value, the baseline's, and the ratio or the share of the limit."""
    ratio = f"{line.ratio:.2f}x" if line.ratio is not None else ""
    share = f"{line.share:.1%}" if line.share is not None else ""
    baseline = _number(line.baseline) if line.baseline is not None else ""
    return _number(line.ours), baseline, " ".join(filter(None, (ratio, share)))


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _target(line: Figure) -> str:
    return f"{line.target}: {'met' if line.met else 'MISSED'}" if line.target else ""


def write_page(results: Results, page: Path, command: str) -> list[Path]:
    """Write the Markdown page and, next to it, the scaling plot; return the written files.

    Args:
        command: command line that the page cites.
    """
    plot = page.with_suffix(".png")
    text = as_markdown(results, plot.name, command)
    page.parent.mkdir(parents=True, exist_ok=True)
    if results.growth:
        write_growth_plot(results.growth, plot)
    write_atomically(page, lambda target: target.write(text.encode()))
    return [page, *([plot] if results.growth else [])]


def as_markdown(results: Results, plot: str, command: str) -> str:
    """Return the text of the page."""
    # Heading, commands and machine.
    machine = dict(results.machine)
    versions = ", ".join(f"{name} {number}" for name, number in machine.pop("versions").items())
    facts = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in machine.items())
    parts = [
        "# Performance",
        "Each ratio is measured in one run, with the contestants in turns on the same machine. Generated by",
        f"    {results.command}\n    {command}",
        f"on {results.date}. The machine: {facts}. {versions}.",
    ]
    # One table per part.
    for part, lines in results.figures.items():
        parts.append(f"## {part.capitalize() if part != 'hog' else 'HOG'}")
        if results.notes.get(part):
            parts.append("\n".join(f"- {note}" for note in results.notes[part]))
        rows: list[Sequence[str]] = [("measurement", "fastmim", "baseline", "ratio or share", "target")]
        for line in lines:
            what = f"{line.name}, {line.unit}"
            if line.against:
                what += f"; against {line.against}"
            if line.limit:
                what += f"; share of {line.limit}"
            rows.append((what, *_numbers(line), _target(line)))
        parts.append(table(rows[0], rows[1:]))
    # Methods.
    if results.methods:
        parts.append("## Methods")
        parts.append("\n".join(f"- {note}" for note in results.notes.get("methods", [])[:1]))
        parts.append(
            "Time, multiply-adds and the paper's GPU hours per epoch (its table 3; 8 V100, not this machine) "
            "are relative to FastMIM on the same backbone. LOW: a share of the peak below "
            f"{LEAST_SHARE:.0%} of FastMIM's."
        )
        parts.append(table(METHOD_COLUMNS, methods_rows(results.methods)))
    # Scaling: one table per quantity, and the plot.
    if results.growth:
        parts.append("## Scaling")
        parts.append(GROWTH_NOTE)
        for what, costs in results.growth.items():
            rows = [(f"{what}, {UNITS[what]}", "images/s", "ms/image", "memory, MiB")]
            rows += [
                (
                    str(getattr(cost, what)),
                    f"{cost.images_per_second:.1f}",
                    f"{1000 / cost.images_per_second:.1f}",
                    f"{cost.memory_mib:.0f}",
                )
                for cost in costs
            ]
            parts.append(table(rows[0], rows[1:]))
        parts.append(f"![Time and memory against batch, size and depth]({plot})")
    return "\n\n".join(parts) + "\n"


def write_growth_plot(growth: Mapping[str, Sequence[Cost]], file: Path) -> None:
    """Plot the time per image and the memory of a step against each quantity that varies."""
    plot = Plot(figsize=(3.4 * len(growth), 5.2), layout="constrained")
    axes = plot.subplots(2, len(growth), squeeze=False)
    for column, (what, costs) in enumerate(growth.items()):
        at = [getattr(cost, what) for cost in costs]
        for row, (values, name) in enumerate(
            (
                ([1000 / cost.images_per_second for cost in costs], "ms per image"),
                ([cost.memory_mib / 1024 for cost in costs], "memory of the step, GiB"),
            )
        ):
            panel = axes[row][column]
            panel.plot(at, values, marker="o")
            panel.set_ylim(0, 1.08 * max(values))
            panel.set_xticks(at)
            panel.set_xlabel(f"{what}: {UNITS[what]}")
            panel.grid(alpha=0.3)
            if not column:
                panel.set_ylabel(name)
    write_atomically(file, lambda target: plot.savefig(target, format="png", dpi=120))
