"""Accuracies side by side: intervals over seeds and images, a table, and a verdict in words."""

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from scipy.stats import norm, ttest_1samp

from fastmim.system.markdown import table

OURS, FROM_SCRATCH, LONGER = "pre-trained", "scratch", "scratch, equal total time"
CONFIDENCE = 0.95
NORMAL = float(norm.ppf((1 + CONFIDENCE) / 2))
LEAST_SEEDS = 3  # for a verdict: of two, chance alone often gives the same difference twice
INTERVALS = (
    "± is the 95 % interval: of the mean over the seeds (Student's t) and of the images that are measured on "
    "(binomial), together"
)


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
    images: int | None = None
    """That are measured on; None where that is not known."""

    @property
    def mean(self) -> float:
        return statistics.mean(self.top1)

    @property
    def sampling_variance(self) -> float:
        """Of the mean, in squared per cent, over other images to measure on; 0 where their number is unknown.

        The mean square of what lies between the mean and Agresti and Coull's estimate (1998), with that
        estimate's own variance: above 0 at 0 and at 100 %, too.
        """
        if self.images is None:
            return 0.0
        number = self.images + 4
        share = (self.mean / 100 * self.images + 2) / number
        return 1e4 * (share * (1 - share) / number + (self.mean / 100 - share) ** 2)

    @property
    def interval(self) -> float:
        """Half the 95 % interval, over seeds and images to measure on; not a number for a single seed."""
        return joint_interval(self.top1, self.sampling_variance)

    @property
    def known_interval(self) -> float | None:
        """The same; None for a single seed, or where all agree and the number of images is unknown."""
        return None if len(self.top1) < 2 else self.interval or None

    @property
    def bounds(self) -> tuple[float, float]:
        """The interval within 0..100; the mean alone for a single seed."""
        half = self.known_interval or 0.0
        return max(0.0, self.mean - half), min(100.0, self.mean + half)


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
    if min(values) == max(values):
        return 0.0  # SciPy warns where nothing varies
    interval = ttest_1samp(values, 0.0).confidence_interval(CONFIDENCE)
    return float(interval.high - interval.low) / 2


def joint_interval(values: tuple[float, ...], sampling_variance: float) -> float:
    """Half the 95 % interval of a mean over seeds, on images that are a sample themselves."""
    return math.hypot(half_interval(values), NORMAL * math.sqrt(sampling_variance))


def as_table(found: Payoff) -> str:
    """The accuracies as Markdown: a row an arm, a column a share of the labels."""
    shares = list(dict.fromkeys(cell.share for cell in found.cells))
    arms = list(dict.fromkeys(cell.arm for cell in found.cells))
    images = {cell.share: cell.training_images for cell in found.cells}
    heading = ["top-1, %", *(f"{_percent(share)} ({images[share]} images)" for share in shares)]
    rows = []
    by_place = {(cell.arm, cell.share): cell for cell in found.cells}
    for arm in arms:
        values = (by_place.get((arm, share)) for share in shares)
        rows.append([arm, *(_shown(cell) if cell else "-" for cell in values)])
    return table(heading, rows)


def _shown(cell: Cell) -> str:
    if len(cell.top1) < 2 or not cell.interval:
        return f"{cell.mean:.2f}"
    low, high = cell.bounds
    if low in (0.0, 100.0) or high in (0.0, 100.0):  # it would go beyond
        return f"{cell.mean:.2f} ({low:.2f} to {high:.2f})"
    return f"{cell.mean:.2f} ± {_half(cell.interval)}"


def _half(half: float) -> str:
    """Two digits, or as many as show that it is not 0."""
    return f"{half:.2f}" if half >= 0.005 else f"{half:.1g}"


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
    """What the difference, seed by seed, says, beyond what other seeds and other images would change."""
    differences = tuple(a - b for a, b in zip(ours.top1, other.top1, strict=True))
    gain, count = statistics.mean(differences), len(differences)
    half = joint_interval(differences, ours.sampling_variance + other.sampling_variance)
    figure = f"{gain:+.2f} points"
    if count == 1:
        return f"pre-training changed top-1 by {figure}, one seed only"
    if half:
        figure += f" ± {_half(half)}"
    if count < LEAST_SEEDS:
        return f"pre-training changed top-1 by {figure}; {count} seeds are too few for a verdict"
    if not half:  # all seeds agree, and nothing is known of the images
        return f"pre-training changed top-1 by {figure} with each seed; how sure that is cannot be said"
    if gain - half > 0:
        return f"pre-training helped, {figure}"
    return f"pre-training hurt, {figure}" if gain + half < 0 else f"no difference beyond chance, {figure}"
