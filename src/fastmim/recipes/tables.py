"""Build recipes from the paper's tables: one for each cell of paper.yaml whose row has a function.

Figures and columns are read from paper.yaml. Rows are functions named after table and row:
``table4_swin_b`` gives the configuration of the row ``swin_b`` of table 4.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from inspect import getdoc
from types import ModuleType
from typing import Any, NamedTuple

from fastmim.mim.settings import DecoderConfig
from fastmim.recipes import ablations, main_results
from fastmim.recipes.definition import Recipe
from fastmim.system.documents import parse_yaml

SWIN_B_DEPTHS = {22: (2, 2, 18, 0), 23: (2, 2, 18, 1), 24: (2, 2, 18, 2), "2-2-16-2": (2, 2, 16, 2)}
RATIOS = (0.5, 0.65, 0.75, 0.85)


class Cell(NamedTuple):
    """One run of a row."""

    columns: tuple[Any, ...]
    """Arguments of the row's function."""
    label: str
    """Last part of the recipe's name."""
    figure: str
    """The paper's figure."""


@dataclass(frozen=True)
class Table:
    """A table of the paper."""

    name: str
    about: str
    """Subject of the comparison, and meaning of the figures."""
    key: str
    """Key in paper.yaml."""
    cells: Callable[[str, Any], Iterator[Cell]]
    """Yields the runs of a row, given its key and its entry in paper.yaml."""
    rows: ModuleType


@cache
def paper_figures() -> dict[str, Any]:
    """Read the paper's tables from paper.yaml."""
    text = files("fastmim.recipes").joinpath("paper.yaml").read_text(encoding="utf-8")
    return parse_yaml(text, "paper.yaml")


def recipes_of(table: Table) -> Iterator[Recipe]:
    """Yield the recipes of a table in the paper's order; rows without a function are skipped."""
    for key, entry in rows_of(table):
        row = key.removesuffix("_224").removesuffix("_192")  # the high resolution is one of the columns
        function = getattr(table.rows, f"{table.name}_{row}", None)
        if function is None:
            continue
        about = f"table {table.name.removeprefix('table')}: {table.about}"
        title, _, notes = (getdoc(function) or "").partition("\n")
        for columns, label, figure in table.cells(key, entry):
            name = "-".join(filter(None, (table.name + "/" + row.replace("_", "-"), label)))
            config = function(*columns)
            yield Recipe(name, about, title, notes.strip(), config, figure, config.model)


def rows_of(table: Table) -> Iterator[tuple[str, Any]]:
    """Yield the rows of a table and their entries.

    Table 8 is a list, in which a run that was fine-tuned twice has two entries; they form one row. Table 15
    covers a single method and backbone and has no rows; its whole entry is yielded as one.
    """
    entry = paper_figures()[table.key]
    if table.name == "table15":
        yield "mae_vit_b", entry
        return
    if isinstance(entry, dict):
        yield from entry.items()
        return
    rows: dict[str, list[Any]] = {}
    for line in entry:
        rows.setdefault(f"{line[0]}_{line[2]}px", []).append(line)
    yield from rows.items()


def _table1a(row: str, entry: Any) -> Iterator[Cell]:
    for epochs, figures in entry.items():
        for size, top1 in figures.items():
            yield Cell((epochs, size), f"{epochs}e-{size}px", f"{top1:.2f} % top-1")


def _table1b(row: str, entry: Any) -> Iterator[Cell]:
    for column, (top1, box, mask) in entry.items():
        predicted, size = column.split("_")
        figure = f"{top1} % top-1; COCO: {box} box AP, {mask} mask AP"
        yield Cell((predicted, int(size)), f"{predicted}-{size}px", figure)


def _table1c(row: str, entry: Any) -> Iterator[Cell]:
    for column, top1 in entry.items():
        depth = SWIN_B_DEPTHS[column] if row == "swin_b" else column
        label = "-".join(map(str, depth)) if isinstance(depth, tuple) else f"{depth}-blocks"
        yield Cell((depth,), label, f"{top1} % top-1")


def _table2(row: str, entry: Any) -> Iterator[Cell]:
    for predicted, losses in entry.items():
        for size, loss in zip(_sizes(row), losses, strict=True):
            yield Cell((predicted, size), f"{predicted}-{size}px", f"loss {loss}")


def _table3(row: str, entry: Any) -> Iterator[Cell]:
    _, _, _, hours, _, top1 = entry
    yield Cell((), "", f"{top1} % top-1, {hours} GPU hours")


def _table4(row: str, entry: Any) -> Iterator[Cell]:
    _, _, _, hours, *_, top1, supervised = entry
    yield Cell((), "", f"{top1} % top-1 ({supervised} % supervised), {hours} GPU hours")


def _table7(row: str, entry: Any) -> Iterator[Cell]:
    columns = [(predicted, size) for predicted in ("pixel", "hog") for size in _sizes(row)]
    for (predicted, size), top1 in zip(columns, entry, strict=True):
        yield Cell((predicted, size), f"{predicted}-{size}px", f"{top1} % top-1")


def _table8(row: str, entry: Any) -> Iterator[Cell]:
    figures = ", ".join(f"{top1} % at {tuned}" for _, _, _, tuned, top1 in entry)
    yield Cell((), "", f"top-1 {figures}; {entry[0][1]} days")


def _table9(row: str, entry: Any) -> Iterator[Cell]:
    for column in ("fastmim", "fastmim_kd"):  # the baseline is supervised
        label = column.replace("_", "-")
        yield Cell((column == "fastmim_kd",), label, f"{entry[column]} % top-1")


def _table10a(row: str, entry: Any) -> Iterator[Cell]:
    for token, top1 in zip(("zeros", "learned"), entry, strict=True):
        yield Cell((token,), token, f"{top1} % top-1")


def _table10b(row: str, entry: Any) -> Iterator[Cell]:
    for block, figures in entry.items():
        for ratio, top1 in zip(RATIOS, figures, strict=True):
            if top1 is not None:
                yield Cell((block, ratio), f"{block}px-{ratio:.2f}", f"{top1} % top-1")


def _table16(row: str, entry: Any) -> Iterator[Cell]:
    for column, top1 in entry.items():
        depth, width = map(int, re.findall(r"\d+", column))
        yield Cell((DecoderConfig(depth, width),), column, f"{top1} % top-1")


def _sizes(row: str) -> tuple[int, int]:
    """Return the high resolution, at the end of the row's key, and FastMIM's 128."""
    return int(row.rpartition("_")[2]), 128


TOP1 = "top-1 on ImageNet-1K, fine-tuned"
TABLES = (
    Table("table1a", f"resolution and length; {TOP1} at 224", "table1a_resolution", _table1a, ablations),
    Table("table1b", f"target and resolution; {TOP1} at 224", "table1b_target", _table1b, ablations),
    Table("table1c", f"blocks that are pre-trained; {TOP1} at 224", "table1c_depth", _table1c, ablations),
    Table("table2", "loss on HOG and on pixels", "table2_loss", _table2, ablations),
    Table("table3", f"methods; {TOP1} at 224", "table3", _table3, main_results),
    Table("table4", f"backbones; {TOP1} at 224", "table4", _table4, main_results),
    Table("table7", f"target and resolution; {TOP1} at 224", "table7_target_resolution", _table7, ablations),
    Table("table8", f"larger images and data; {TOP1} at 224 or 384", "table8_swin_b", _table8, main_results),
    Table("table9", f"distillation; {TOP1} at 224", "table9_distillation", _table9, main_results),
    Table("table10a", f"place and kind of mask; {TOP1} at 224", "table10a_masking", _table10a, ablations),
    Table("table10b", f"size and ratio of mask; {TOP1} at 224", "table10b_mask", _table10b, ablations),
    Table("table15", f"MAE, resolution; {TOP1} at 224", "table15_mae_resolution", _table1a, ablations),
    Table("table16", f"decoder; {TOP1} at 224", "table16_decoder", _table16, ablations),
)
