"""Markdown tables."""

from collections.abc import Iterable, Sequence


def table(heading: Sequence[str], rows: Iterable[Sequence[str]], align: str | None = None) -> str:
    """Format a Markdown table, without a newline at its end.

    Args:
        heading: one cell per column.
        rows: rows with the same number of cells.
        align: one letter per column, ``l`` left or ``r`` right. Default: left, then right.
    """
    align = align or "l" + "r" * (len(heading) - 1)
    rule = ["---" if letter == "l" else "---:" for letter in align]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heading, rule, *rows))
