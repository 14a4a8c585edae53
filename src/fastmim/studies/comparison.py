"""Compare scores: intervals over seeds and images, a table, and verdicts in words."""

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from scipy.stats import norm, ttest_1samp

from fastmim.studies.settings import FROM_SCRATCH, LONGER, OURS, TOP1, Metric
from fastmim.system.markdown import table

CONFIDENCE = 0.95
NORMAL = float(norm.ppf((1 + CONFIDENCE) / 2))
LEAST_SEEDS = 3  # for a verdict: two seeds often give similar differences by chance


@dataclass(frozen=True)
class Cell:
    """Scores of one arm with one share of the labels, one per seed."""

    arm: str
    share: str
    scores: tuple[float, ...]
    """Per cent, in the order of the seeds."""
    seconds: float
    """Training time, mean over the seeds."""
    training_images: int
    images: int | None = None
    """Number of images of which the score is the share of right answers; None if unknown, or if the score is
    no such share."""

    @property
    def mean(self) -> float:
        return statistics.mean(self.scores)

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
        return joint_interval(self.scores, self.sampling_variance)

    @property
    def known_interval(self) -> float | None:
        """`interval`; None for a single seed, or if all seeds agree and the number of images is unknown."""
        return None if len(self.scores) < 2 else self.interval or None

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
    metric: Metric = TOP1


def interval_note(metric: Metric) -> str:
    """Explain the intervals of a score."""
    seeds = "± is the 95 % interval of the mean over the seeds (Student's t)"
    if metric.share_of_images:
        return f"{seeds} and of the images that are measured on (binomial), together"
    return f"{seeds}; all runs are measured on the same images, whose choice it leaves out"


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
    """Format the scores as a Markdown table: one row per arm, one column per share of the labels."""
    shares = list(dict.fromkeys(cell.share for cell in found.cells))
    arms = list(dict.fromkeys(cell.arm for cell in found.cells))
    images = {cell.share: cell.training_images for cell in found.cells}
    heading = [f"{found.metric.name}, %", *(_with_images(share, images[share]) for share in shares)]
    rows = []
    by_place = {(cell.arm, cell.share): cell for cell in found.cells}
    for arm in arms:
        values = (by_place.get((arm, share)) for share in shares)
        rows.append([arm, *(_shown(cell) if cell else "-" for cell in values)])
    return table(heading, rows)


def _shown(cell: Cell) -> str:
    if len(cell.scores) < 2 or not cell.interval:
        return f"{cell.mean:.2f}"
    low, high = cell.bounds
    if low in (0.0, 100.0) or high in (0.0, 100.0):  # the interval is clipped
        return f"{cell.mean:.2f} ({low:.2f} to {high:.2f})"
    return f"{cell.mean:.2f} ± {_half(cell.interval)}"


def _half(half: float) -> str:
    """Format with two decimals, or with as many as show that the value is not 0."""
    return f"{half:.2f}" if half >= 0.005 else f"{half:.1g}"


def _with_images(share: str, images: int) -> str:
    return f"{_percent(share)} ({images} images)" if _percent(share) else f"{images} images"


def _percent(share: str) -> str:
    """Format a share of the labels; empty for a number of images."""
    if "/" in share:
        return share
    return f"{100 * float(share):g} %" if float(share) <= 1 else ""


def _labels(share: str) -> str:
    return f"{_percent(share)} of the labels" if _percent(share) else f"{float(share):g} labelled images"


def verdicts(cells: tuple[Cell, ...], metric: Metric = TOP1) -> Iterator[str]:
    """Yield one sentence per share of the labels, and one for equal total time."""
    by_place = {(cell.arm, cell.share): cell for cell in cells}
    for share in dict.fromkeys(cell.share for cell in cells):
        verdict = _verdict(by_place[OURS, share], by_place[FROM_SCRATCH, share], metric)
        yield f"{_labels(share)}: {verdict}"
    for (arm, share), cell in by_place.items():
        if arm == LONGER:
            verdict = _verdict(by_place[OURS, share], cell, metric)
            yield f"{_labels(share)}, equal total time: {verdict}"


def _verdict(ours: Cell, other: Cell, metric: Metric) -> str:
    """Word the mean difference, seed by seed, given its interval over seeds and images."""
    differences = tuple(a - b for a, b in zip(ours.scores, other.scores, strict=True))
    gain, count = statistics.mean(differences), len(differences)
    half = joint_interval(differences, ours.sampling_variance + other.sampling_variance)
    figure = f"{gain:+.2f} points"
    changed = f"pre-training changed {metric.name} by"
    if count == 1:
        return f"{changed} {figure}, one seed only"
    if half:
        figure += f" ± {_half(half)}"
    if count < LEAST_SEEDS:
        return f"{changed} {figure}; {count} seeds are too few for a verdict"
    if not half:  # all seeds agree, and the number of images is unknown
        return f"{changed} {figure} with each seed; its uncertainty is unknown"
    if gain - half > 0:
        return f"pre-training helped, {figure}"
    return f"pre-training hurt, {figure}" if gain + half < 0 else f"no difference beyond chance, {figure}"
