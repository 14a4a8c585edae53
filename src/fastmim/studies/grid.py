"""Grid of a sweep: 3 x 3 points at first, extended while the best is on its border (appendix A.3.3)."""

from fastmim.studies.settings import Point, SweepConfig


def wanted_points(top1: dict[Point, float], config: SweepConfig) -> list[Point]:
    """Return the points still to be tried, given the known accuracies; the central 3 x 3 comes first.

    The grid is the smallest rectangle that contains the best point's 3 x 3 neighbourhood and the grid before.
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
    """Return a rectangle's points with a layer decay above 0; those clipped to a decay of 1 appear once."""
    points: dict[tuple[float, float], Point] = {}
    for rate in range(rates[0], rates[1] + 1):
        for decay in range(decays[0], decays[1] + 1):
            place = config.at((rate, decay))
            if place[1] > 0:
                points.setdefault(place, (rate, decay))
    return list(points.values())
