"""The grid of a sweep: 3 x 3 points at first, larger while the best lies on its border (appendix A.3.3)."""

from dataclasses import dataclass

from fastmim.config import check_least
from fastmim.config.finetune import PAPERS_LAYER_DECAY, PAPERS_LR
from fastmim.errors import UsageError

Point = tuple[int, int]
"""Steps from the centre: of the learning rate, of the layer decay."""


@dataclass(frozen=True)
class SweepConfig:
    """The grid."""

    centre_lr: float | None = None
    """Base learning rate in the middle of the first grid. Default: optim.base-lr (paper: 1e-3)."""
    centre_decay: float | None = None
    """Layer decay there. Default: layer-decay (paper: 0.75)."""
    lr_factor: float = 2.0
    """From one base learning rate to the next."""
    decay_step: float = 0.05
    """From one layer decay to the next."""
    max_trials: int = 25
    """Points at most, 9 or more: a grid that wants more stops growing."""
    storage: str | None = None
    """Where the study lives, as optuna's URL (postgresql://..., sqlite:///...): give all machines the same.
    Default: sweep.db in --out."""
    study: str = "fastmim"
    """Name of the study in its storage."""

    def __post_init__(self) -> None:
        check_least(self, {"max_trials": 9})
        for name in ("centre_lr", "decay_step"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UsageError(f"{name} = {value} must be above 0")
        if self.centre_decay is not None and not 0 < self.centre_decay <= 1:
            raise UsageError(f"centre_decay = {self.centre_decay} must be above 0 and at most 1")
        if self.lr_factor <= 1:
            raise UsageError(f"lr_factor = {self.lr_factor} must be above 1")

    def at(self, point: Point) -> tuple[float, float]:
        """(base_lr, layer_decay) of a point, rounded so that the same point is the same number."""
        rate = (self.centre_lr or PAPERS_LR) * self.lr_factor ** point[0]
        decay = min(1.0, (self.centre_decay or PAPERS_LAYER_DECAY) + self.decay_step * point[1])
        return float(f"{rate:.6g}"), round(decay, 6)


def wanted_points(top1: dict[Point, float], config: SweepConfig) -> list[Point]:
    """Points still to be tried, given those that are known; the 3 x 3 around the centre first.

    The grid is the smallest rectangle around the best point's 3 x 3 and all before it.
    """
    rates, decays = (-1, 1), (-1, 1)
    while True:
        grid = _points(rates, decays, config)
        missing = [point for point in grid if point not in top1]
        if missing:
            return missing if len(grid) <= config.max_trials else []
        best = max(grid, key=lambda point: top1[point])
        larger = (
            (min(rates[0], best[0] - 1), max(rates[1], best[0] + 1)),
            (min(decays[0], best[1] - 1), max(decays[1], best[1] + 1)),
        )
        if _points(*larger, config) == grid:
            return []
        rates, decays = larger


def _points(rates: tuple[int, int], decays: tuple[int, int], config: SweepConfig) -> list[Point]:
    """The points of a rectangle whose layer decay is between 0 and 1; 1 once."""
    points: dict[tuple[float, float], Point] = {}
    for rate in range(rates[0], rates[1] + 1):
        for decay in range(decays[0], decays[1] + 1):
            place = config.at((rate, decay))
            if place[1] > 0:
                points.setdefault(place, (rate, decay))
    return list(points.values())
