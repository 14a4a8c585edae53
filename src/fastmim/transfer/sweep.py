"""The paper's grid search over base learning rate and layer decay (appendix A.3.3), shared by many machines.

The grid is 3 x 3 around (1e-3, 0.75); while the best point lies on its border, it grows that way. Points
live in an optuna study: machines that share its storage share the work, and a broken-off search goes on.
"""

import contextlib
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fastmim.config import FinetuneConfig, check_least
from fastmim.encoders.models import first_line
from fastmim.errors import RunError, StoppedError, UsageError
from fastmim.train.checkpoint import write_atomically
from fastmim.transfer.classify import run_finetuning

if TYPE_CHECKING:
    import optuna

SWEEP = "sweep.json"
NEEDS = "a sweep needs optuna: pip install 'fastmim[sweep]'"
POLL_SECONDS = 10.0
HEARTBEAT_SECONDS = 60
RATE, DECAY = "base_lr", "layer_decay"
RATES = (1e-9, 1e3)  # what optuna is told a learning rate may be
Point = tuple[int, int]
"""Steps from the centre: of the learning rate, of the layer decay."""


@dataclass(frozen=True)
class SweepConfig:
    """The grid."""

    centre_lr: float = 1e-3
    """Base learning rate in the middle of the first grid (paper)."""
    centre_decay: float = 0.75
    """Layer decay there (paper)."""
    lr_factor: float = 2.0
    """From one base learning rate to the next."""
    decay_step: float = 0.05
    """From one layer decay to the next."""
    max_trials: int = 25
    """Points at most: a grid that wants more stops growing."""
    storage: str | None = None
    """Where the study lives, as optuna's URL (postgresql://..., sqlite:///...): give all machines the same.
    Default: sweep.db in --out."""
    study: str = "fastmim"
    """Name of the study in its storage."""

    def __post_init__(self) -> None:
        check_least(self, {"max_trials": 9})
        for name in ("centre_lr", "decay_step"):
            if getattr(self, name) <= 0:
                raise UsageError(f"{name} = {getattr(self, name)} must be above 0")
        if not 0 < self.centre_decay <= 1:
            raise UsageError(f"centre_decay = {self.centre_decay} must be above 0 and at most 1")
        if self.lr_factor <= 1:
            raise UsageError(f"lr_factor = {self.lr_factor} must be above 1")

    def at(self, point: Point) -> tuple[float, float]:
        """(base_lr, layer_decay) of a point, rounded so that the same point is the same number."""
        rate = self.centre_lr * self.lr_factor ** point[0]
        decay = min(1.0, self.centre_decay + self.decay_step * point[1])
        return float(f"{rate:.6g}"), round(decay, 6)


class Found(NamedTuple):
    """What a search found."""

    accuracy: dict[tuple[float, float], float]
    """(base_lr, layer_decay) -> top-1, per cent."""
    best: tuple[float, float]
    stopped_growing: bool
    """The best point still lies on the border, but max_trials are done."""


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


def sweep(
    config: FinetuneConfig, grid: SweepConfig, quiet: bool = False, say: Callable[[str], None] = print
) -> Found:
    """Fine-tune at every point of the grid, together with whoever shares the study.

    Args:
        config: how to fine-tune, but for base_lr and layer_decay; ``out`` holds a run a point.

    Raises:
        UsageError: a setting, path or model that does not work, or optuna is not there.
        RunError: every run failed.
    """
    if not config.out:
        raise UsageError("out is missing: give a folder for the runs and the heat map")
    try:
        import optuna
    except ImportError as error:
        raise UsageError(NEEDS) from error
    out = Path(config.out).expanduser()
    study = _open_study(grid, out)
    trial = partial(_try, config=config, grid=grid, out=out, quiet=quiet, say=say)
    while True:
        with _quiet_optuna():
            optuna.storages.fail_stale_trials(study)  # of processes that were killed
        top1, running, waiting = _known(study)
        missing = [point for point in wanted_points(top1, grid) if point not in running | waiting]
        if missing and not waiting:
            study.enqueue_trial(_as_settings(grid, missing[0]), user_attrs={"point": list(missing[0])})
        if missing or waiting:
            with _quiet_optuna():
                study.optimize(trial, n_trials=1, catch=(RunError,))
        elif running:
            say(f"waiting for {len(running)} points that other processes are trying")
            time.sleep(POLL_SECONDS)
        else:
            break
    accuracy = {grid.at(point): value for point, value in top1.items() if math.isfinite(value)}
    if not accuracy:
        raise RunError(f"no run of the sweep in {out} ended well")
    best = max(accuracy, key=lambda place: accuracy[place])
    found = Found(accuracy, best, _on_border(top1, grid))
    values = {
        "best": {RATE: best[0], DECAY: best[1], "top1": accuracy[best]},
        "stopped_growing": found.stopped_growing,
        "trials": [{RATE: rate, DECAY: decay, "top1": value} for (rate, decay), value in accuracy.items()],
    }
    content = json.dumps(values, indent=2).encode() + b"\n"
    write_atomically(out / SWEEP, lambda file: file.write(content))
    return found


def _on_border(top1: dict[Point, float], grid: SweepConfig) -> bool:
    return bool(wanted_points(top1, replace(grid, max_trials=10**9)))


def _open_study(grid: SweepConfig, out: Path) -> "optuna.Study":
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"out: {out} cannot be made: {error.strerror}") from error
    url = grid.storage or f"sqlite:///{(out / 'sweep.db').resolve()}"
    try:
        with _quiet_optuna():
            storage = optuna.storages.RDBStorage(url, heartbeat_interval=HEARTBEAT_SECONDS)
        return optuna.create_study(
            storage=storage, study_name=grid.study, direction="maximize", load_if_exists=True
        )
    except Exception as error:  # of the database and its driver
        raise UsageError(f"storage = {url}: the study cannot be opened: {first_line(error)}") from error


@contextlib.contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Without the warnings that heartbeats are experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _known(study: "optuna.Study") -> tuple[dict[Point, float], set[Point], set[Point]]:
    """Accuracy of the finished points (of failed ones: minus infinity), those in work, and those enqueued."""
    from optuna.trial import TrialState

    top1: dict[Point, float] = {}
    running: set[Point] = set()
    waiting: set[Point] = set()
    for trial in study.get_trials(deepcopy=False):
        if "point" not in trial.user_attrs:
            continue
        rate, decay = trial.user_attrs["point"]
        point = (int(rate), int(decay))
        if trial.state == TrialState.COMPLETE and trial.value is not None:
            top1[point] = trial.value
        elif trial.state == TrialState.RUNNING:
            running.add(point)
        elif trial.state == TrialState.WAITING:
            waiting.add(point)
        elif "failed" in trial.user_attrs:
            top1.setdefault(point, -math.inf)
    return top1, running, waiting


def _as_settings(grid: SweepConfig, point: Point) -> dict[str, float]:
    rate, decay = grid.at(point)
    return {RATE: rate, DECAY: decay}


def _try(
    trial: "optuna.Trial",
    config: FinetuneConfig,
    grid: SweepConfig,
    out: Path,
    quiet: bool,
    say: Callable[[str], None],
) -> float:
    """Fine-tune at a point, or go on with that."""
    import optuna

    if "point" not in trial.user_attrs:  # another process took the one that was enqueued
        raise optuna.TrialPruned
    rate = trial.suggest_float(RATE, *RATES, log=True)
    decay = trial.suggest_float(DECAY, 0.0, 1.0)
    say(f"base_lr {rate:g}, layer_decay {decay:g}")
    run = out / "runs" / f"lr{rate:g}_decay{decay:g}"
    optim = replace(config.optim, base_lr=rate)
    try:
        result = run_finetuning(
            replace(config, out=str(run), layer_decay=decay, optim=optim), resume=True, quiet=quiet
        )
    except RunError as error:
        trial.set_user_attr("failed", str(error))
        say(f"failed: {error}")
        raise
    if result.stopped_by is not None:
        raise StoppedError(result.stopped_by)
    say(f"base_lr {rate:g}, layer_decay {decay:g}: top-1 {result.top1:.2f} %")
    return result.top1
