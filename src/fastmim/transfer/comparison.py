"""Accuracies side by side: intervals over seeds, a table, and a verdict in words."""

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from scipy.stats import t as student_t

OURS, FROM_SCRATCH, LONGER = "pre-trained", "scratch", "scratch, equal total time"
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Cell:
    """One arm with one share of the labels: an accuracy for each seed."""

    arm: str
    share: str
    top1: tuple[float, ...]
    """Per cent, in the order of the seeds."""
    seconds: float
    """Of training, mean over the seeds."""
    training_images: int

    @property
    def mean(self) -> float:
        return statistics.mean(self.top1)

    @property
    def interval(self) -> float:
        """Half the 95 % interval of the mean (Student's t over the seeds)."""
        return half_interval(self.top1)

    @property
    def known_interval(self) -> float | None:
        """The same; None for a single seed."""
        return None if len(self.top1) < 2 else self.interval


@dataclass(frozen=True)
class Payoff:
    """The card that decides."""

    cells: tuple[Cell, ...]
    pretraining_seconds: float | None
    """Of training; None where the encoder lies apart from its run."""
    verdicts: tuple[str, ...]
    """A sentence for each share of the labels, and one for equal total time."""


def half_interval(values: tuple[float, ...]) -> float:
    """Half of Student's 95 % interval of the mean; not a number for a single value."""
    if len(values) < 2:
        return math.nan
    quantile = float(student_t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    return quantile * statistics.stdev(values) / math.sqrt(len(values))


def as_table(found: Payoff) -> str:
    """The accuracies as Markdown: a row an arm, a column a share of the labels."""
    shares = list(dict.fromkeys(cell.share for cell in found.cells))
    arms = list(dict.fromkeys(cell.arm for cell in found.cells))
    images = {cell.share: cell.training_images for cell in found.cells}
    header = " | ".join(f"{_percent(share)} ({images[share]} images)" for share in shares)
    lines = [f"| top-1, % | {header} |", "|---|" + "---:|" * len(shares)]
    by_place = {(cell.arm, cell.share): cell for cell in found.cells}
    for arm in arms:
        values = (by_place.get((arm, share)) for share in shares)
        lines.append(f"| {arm} | " + " | ".join(_shown(cell) if cell else "-" for cell in values) + " |")
    return "\n".join(lines)


def _shown(cell: Cell) -> str:
    return f"{cell.mean:.2f}" + (f" ± {cell.interval:.2f}" if len(cell.top1) > 1 else "")


def _percent(share: str) -> str:
    return share if "/" in share else f"{100 * float(share):g} %"


def verdicts(cells: tuple[Cell, ...]) -> Iterator[str]:
    """A sentence for each share of the labels, and one for equal total time."""
    by_place = {(cell.arm, cell.share): cell for cell in cells}
    for share in dict.fromkeys(cell.share for cell in cells):
        verdict = _verdict(by_place[OURS, share], by_place[FROM_SCRATCH, share])
        yield f"{_percent(share)} of the labels: {verdict}"
    for (arm, share), cell in by_place.items():
        if arm == LONGER:
            verdict = _verdict(by_place[OURS, share], cell)
            yield f"{_percent(share)} of the labels, equal total time: {verdict}"


def _verdict(ours: Cell, other: Cell) -> str:
    """What the difference, seed by seed, says."""
    differences = tuple(a - b for a, b in zip(ours.top1, other.top1, strict=True))
    gain, half = statistics.mean(differences), half_interval(differences)
    figure = f"{gain:+.2f} points" + (f" ± {half:.2f}" if len(differences) > 1 else ", one seed only")
    if math.isnan(half):
        return f"pre-training changed top-1 by {figure}"
    if gain - half > 0:
        return f"pre-training helped, {figure}"
    return (
        f"pre-training hurt, {figure}"
        if gain + half < 0
        else f"no difference beyond chance between seeds, {figure}"
    )
