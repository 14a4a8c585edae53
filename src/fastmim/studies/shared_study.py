"""Optuna study of a sweep, shared by processes and machines."""

import contextlib
import json
import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fastmim.config import ALWAYS_FREE, FinetuneConfig
from fastmim.errors import UsageError, first_line
from fastmim.studies.grid import wanted_points
from fastmim.studies.settings import Point, SweepConfig
from fastmim.weights.encoder_file import encoder_digest
from fastmim.weights.spec import parse_weights

if TYPE_CHECKING:
    import optuna

HEARTBEAT_SECONDS = 60
CLAIM_SECONDS = 0.5  # time until a claim is visible to all processes
OPENINGS = 5  # attempts to open the study
GRID = ("centre_lr", "centre_decay", "lr_factor", "decay_step")  # settings that determine the points


def open_study(config: FinetuneConfig, grid: SweepConfig, out: Path) -> "optuna.Study":
    """Open the study of the grid in ``out``, or create it. Raises UsageError if it is of another search."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"out: {out} cannot be created: {error.strerror}") from error
    url = grid.storage or f"sqlite:///{(out / 'sweep.db').resolve()}"
    for attempt in range(OPENINGS):
        try:
            with quiet_optuna():
                storage = optuna.storages.RDBStorage(url, heartbeat_interval=HEARTBEAT_SECONDS)
                study = optuna.create_study(
                    storage=storage, study_name=grid.study, direction="maximize", load_if_exists=True
                )
            break
        except (
            Exception
        ) as error:  # from the database or its driver, or another process is creating the study
            if attempt == OPENINGS - 1:
                raise UsageError(
                    f"storage = {url}: the study cannot be opened: {first_line(error)}"
                ) from error
            time.sleep(1 + attempt)
    _check_same(study, config, grid, url)
    return study


def _check_same(study: "optuna.Study", config: FinetuneConfig, grid: SweepConfig, url: str) -> None:
    """Raise UsageError unless the study has the same fine-tuning settings and grid."""
    settings = asdict(config) | {"optim": asdict(replace(config.optim, base_lr=1.0)), "layer_decay": None}
    for name in (*ALWAYS_FREE - {"data"}, "accelerator"):
        settings.pop(name)
    settings |= {
        name: getattr(grid, name) for name in ("centre_lr", "centre_decay", "lr_factor", "decay_step")
    }
    if parse_weights(config.encoder).kind in ("timm", "file"):
        settings.pop("model")  # determined by the weights
    settings["encoder"] = encoder_digest(config.encoder)
    now = json.loads(json.dumps(settings))
    before = study.user_attrs.get("settings")
    if before is None:
        study.set_user_attr("settings", now)
        return
    differing = [name for name in now if before.get(name) != now[name]]
    if differing:
        name = differing[0]
        raise UsageError(
            f"{name} = {now[name]} differs from the {before.get(name)} that the study {grid.study!r} in "
            f"{url} started with; give another --study"
        )


@contextlib.contextmanager
def quiet_optuna() -> Iterator[None]:
    """Suppress optuna's warnings that heartbeats are experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def known_points(study: "optuna.Study") -> tuple[dict[Point, float], dict[Point, int]]:
    """Return the accuracy of finished points (-inf if failed), and the first trial of running points."""
    from optuna.trial import TrialState

    top1: dict[Point, float] = {}
    running: dict[Point, int] = {}
    for trial in study.get_trials(deepcopy=False):
        if "point" not in trial.user_attrs:
            continue
        rate, decay = trial.user_attrs["point"]
        point = (int(rate), int(decay))
        if trial.state == TrialState.COMPLETE and trial.value is not None:
            top1[point] = trial.value
        elif trial.state == TrialState.RUNNING:
            running[point] = min(trial.number, running.get(point, trial.number))
        elif "failed" in trial.user_attrs:
            top1.setdefault(point, -math.inf)
    return top1, running


def claim_point(trial: "optuna.Trial", grid: SweepConfig) -> Point:
    """Claim a free point. If two processes claim the same point, the later trial takes another one."""
    import optuna

    while True:
        top1, running = known_points(trial.study)
        free = [point for point in wanted_points(top1, grid) if point not in running]
        if not free:
            raise optuna.TrialPruned
        trial.set_user_attr("point", list(free[0]))
        time.sleep(CLAIM_SECONDS)
        top1, running = known_points(trial.study)
        if free[0] not in top1 and running.get(free[0]) == trial.number:
            return free[0]
