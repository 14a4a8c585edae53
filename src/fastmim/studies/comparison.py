"""Compare accuracies: intervals over seeds and images, a table, and verdicts in words."""

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from scipy.stats import norm, ttest_1samp

from fastmim.studies.settings import FROM_SCRATCH, LONGER, OURS
from fastmim.system.markdown import table

CONFIDENCE = 0.95
NORMAL = float(norm.ppf((1 + CONFIDENCE) / 2))
LEAST_SEEDS = 3  # for a verdict: two seeds often give similar differences by chance
INTERVALS = (
    "± is the 95 % interval: of the mean over the seeds (Student's t) and of the images that are measured on "
    "(binomial), together"
)


@dataclass(frozen=True)
class Cell:
    """Accuracies of one arm with one share of the labels, one per seed."""

    arm: str
    share: str
    top1: tuple[float, ...]
    """Per cent, in the order of the seeds."""
    seconds: float
    """Training time, mean over the seeds."""
    training_images: int
    images: int | None = None
    """Number of images that the accuracy is measured on; None if unknown."""

    @property
    def mean(self) -> float:
        return statistics.mean(self.top1)

    @property
    def sampling_variance(self) -> float:
        """Variance of the mean over samples of images, in squared per cent; 0 if their number is unknown.

        Squared difference between the mean and Agresti and Coull's estimate (1998), plus the variance of
        that estimate; above 0 even for means of 0 and 100 %.
        """
        if self.images is None:
            return 0.0
        number = self.images + 4
        share = (self.mean / 100 * self.images + 2) / number
        return 1e4 * (share * (1 - share) / number + (self.mean / 100 - share) ** 2)

    @property
    def interval(self) -> float:
        """Half-width of the 95 % interval over seeds and measured images; NaN for a single seed."""
        return joint_interval(self.top1, self.sampling_variance)

    @property
    def known_interval(self) -> float | None:
        """`interval`; None for a single seed, or if all seeds agree and the number of images is unknown."""
        return None if len(self.top1) < 2 else self.interval or None

    @property
    def bounds(self) -> tuple[float, float]:
        """Limits of the interval, clipped to 0..100; the mean itself if `known_interval` is None."""
        half = self.known_interval or 0.0
        return max(0.0, self.mean - half), min(100.0, self.mean + half)


@dataclass(frozen=True)
class Payoff:
    """Results of all arms, and the verdicts."""

    cells: tuple[Cell, ...]
    pretraining_seconds: float | None
    """Training time of the encoder; None if the encoder is not in the folder of its run."""
    verdicts: tuple[str, ...]
    """One sentence per share of the labels, and one for equal total time."""


def half_interval(values: tuple[float, ...]) -> float:
    """Return the half-width of Student's 95 % interval of the mean; NaN for a single value."""
    if len(values) < 2:
        return math.nan
    if min(values) == max(values):
        return 0.0  # SciPy warns where nothing varies
    interval = ttest_1samp(values, 0.0).confidence_interval(CONFIDENCE)
    return float(interval.high - interval.low) / 2


def joint_interval(values: tuple[float, ...], sampling_variance: float) -> float:
    """Return the half-width of the 95 % interval of a mean over seeds, measured on a sample of images."""
    return math.hypot(half_interval(values), NORMAL * math.sqrt(sampling_variance))


def as_table(found: Payoff) -> str:
    """Format the accuracies as a Markdown table: one row per arm, one column per share of the labels."""
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
    if low in (0.0, 100.0) or high in (0.0, 100.0):  # the interval is clipped
        return f"{cell.mean:.2f} ({low:.2f} to {high:.2f})"
    return f"{cell.mean:.2f} ± {_half(cell.interval)}"


def _half(half: float) -> str:
    """Format with two decimals, or with as many as show that the value is not 0."""
    return f"{half:.2f}" if half >= 0.005 else f"{half:.1g}"


def _percent(share: str) -> str:
    return share if "/" in share else f"{100 * float(share):g} %"


def verdicts(cells: tuple[Cell, ...]) -> Iterator[str]:
    """Yield one sentence per share of the labels, and one for equal total time."""
    by_place = {(cell.arm, cell.share): cell for cell in cells}
    for share in dict.fromkeys(cell.share for cell in cells):
        verdict = _verdict(by_place[OURS, share], by_place[FROM_SCRATCH, share])
        yield f"{_percent(share)} of the labels: {verdict}"
    for (arm, share), cell in by_place.items():
        if arm == LONGER:
            verdict = _verdict(by_place[OURS, share], cell)
            yield f"{_percent(share)} of the labels, equal total time: {verdict}"


def _verdict(ours: Cell, other: Cell) -> str:
    """Word the mean difference, seed by seed, given its interval over seeds and images."""
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
    if not half:  # all seeds agree, and the number of images is unknown
        return f"pre-training changed top-1 by {figure} with each seed; its uncertainty is unknown"
    if gain - half > 0:
        return f"pre-training helped, {figure}"
    return f"pre-training hurt, {figure}" if gain + half < 0 else f"no difference beyond chance, {figure}"
