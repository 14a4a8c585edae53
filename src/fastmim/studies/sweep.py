"""The paper's grid search over base learning rate and layer decay (appendix A.3.3), on one or more machines.

The grid is 3 x 3 around (1e-3, 0.75); while the best point lies on its border, it grows in that direction.
Points are stored in an optuna study: machines with the same storage share the work, and an interrupted search
can be resumed.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fastmim.config import FinetuneConfig
from fastmim.downstream.backbone import with_factory
from fastmim.downstream.classification.entry import run_finetuning
from fastmim.encoders.trust import Trust
from fastmim.errors import RunError, StoppedError
from fastmim.studies.grid import wanted_points
from fastmim.studies.settings import Point, SweepConfig, check_sweep
from fastmim.studies.shared_study import claim_point, known_points, open_study, quiet_optuna
from fastmim.system.files import write_atomically
from fastmim.train.distributed import build_fabric, precision_of
from fastmim.train.settings import StartMode

if TYPE_CHECKING:
    import optuna

SWEEP = "sweep.json"
POLL_SECONDS = 10.0
RATE, DECAY = "base_lr", "layer_decay"


class Found(NamedTuple):
    """Result of a search."""

    accuracy: dict[tuple[float, float], float]
    """(base_lr, layer_decay) -> top-1, per cent."""
    best: tuple[float, float]
    stopped_growing: bool
    """True if the best point lies on the border, but max_trials does not allow a larger grid."""


def sweep(
    config: FinetuneConfig,
    grid: SweepConfig,
    quiet: bool = False,
    say: Callable[[str], None] = print,
    trust_code: bool = False,
) -> Found:
    """Fine-tune at every point of the grid, together with other processes that share the study.

    Args:
        config: fine-tuning settings except base_lr and layer_decay; ``out`` receives one run per point.
        trust_code: import and call any factory that the encoder's file names.

    Raises:
        UsageError: a setting, path or model is invalid, or optuna is not installed.
        RunError: every run failed.
    """
    check_sweep(config)
    import optuna

    # Complete the settings, and open the study.
    out = Path(config.out).expanduser()
    fabric = build_fabric(config.accelerator, 1, 1, config.precision)
    config = replace(config, precision=precision_of(fabric))  # found by timing; must be equal for all points
    grid = replace(
        grid,
        centre_lr=grid.centre_lr or config.optim.base_lr,
        centre_decay=grid.centre_decay or config.known_layer_decay,
    )
    config = with_factory(config, Trust.of(config.model, everything=trust_code))
    study = open_study(config, grid, out)
    trial = partial(_try, config=config, grid=grid, out=out, quiet=quiet, say=say)
    # Try points until none is missing or running.
    while True:
        with quiet_optuna():
            optuna.storages.fail_stale_trials(study)  # of processes that were killed
        top1, running = known_points(study)
        missing = set(wanted_points(top1, grid)) - set(running)
        if missing:
            with quiet_optuna():
                study.optimize(trial, n_trials=1, catch=(_PointFailed,))
        elif running:
            say(f"waiting for {len(running)} points that other processes are trying")
            time.sleep(POLL_SECONDS)
        else:
            break
    # Find the best point, and write the result.
    accuracy = {grid.at(point): value for point, value in top1.items() if math.isfinite(value)}
    if not accuracy:
        raise RunError(f"all runs of the sweep in {out} failed")
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


class _PointFailed(Exception):
    """A run of the sweep failed; the other points continue."""


def _try(
    trial: "optuna.Trial",
    config: FinetuneConfig,
    grid: SweepConfig,
    out: Path,
    quiet: bool,
    say: Callable[[str], None],
) -> float:
    """Fine-tune at a free point, or resume its run; return top-1, per cent."""
    rate, decay = grid.at(claim_point(trial, grid))
    trial.suggest_float(RATE, rate, rate)
    trial.suggest_float(DECAY, decay, decay)
    say(f"base_lr {rate:g}, layer_decay {decay:g}")
    run = out / "runs" / f"lr{rate:g}_decay{decay:g}"
    optim = replace(config.optim, base_lr=rate)
    try:
        result = run_finetuning(
            replace(config, out=str(run), layer_decay=decay, optim=optim),
            StartMode("or-begin", quiet=quiet),
        )
    except StoppedError:
        raise
    except RunError as error:
        trial.set_user_attr("failed", str(error))
        say(f"failed: {error}")
        raise _PointFailed from error
    if result.stopped_by is not None:
        raise StoppedError(result.stopped_by, f"in {run}; the same command resumes it")
    say(f"base_lr {rate:g}, layer_decay {decay:g}: top-1 {result.top1:.2f} %")
    return result.top1
