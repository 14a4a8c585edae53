"""The grid grows towards the best point, machines share it, and it goes on after a stop."""

import json
import multiprocessing
import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmim.cli.entry import main
from fastmim.config import FinetuneConfig
from fastmim.downstream.classification.task import FinetuneResult
from fastmim.errors import RunError, StoppedError, UsageError
from fastmim.studies import shared_study as study_module
from fastmim.studies import sweep as sweep_module
from fastmim.studies.grid import wanted_points
from fastmim.studies.settings import SweepConfig
from fastmim.studies.sweep import sweep

pytest.importorskip("optuna")


def searched(peak, grid):
    """Points that are tried where accuracy falls with the distance from ``peak``."""
    known = {}
    while wanted := wanted_points(known, grid):
        point = wanted[0]
        assert point not in known
        known[point] = 50.0 - (point[0] - peak[0]) ** 2 - (point[1] - peak[1]) ** 2
    return known


def test_a_peak_in_the_middle_takes_nine_points():
    assert set(searched((0, 0), SweepConfig())) == {(r, d) for r in (-1, 0, 1) for d in (-1, 0, 1)}


@given(st.integers(-2, 2), st.integers(-2, 2))
def test_the_grid_grows_until_the_best_lies_inside(rate, decay):
    known = searched((rate, decay), SweepConfig(max_trials=1000))
    best = max(known, key=known.get)
    assert best == (rate, decay)
    assert {(rate + r, decay + d) for r in (-1, 0, 1) for d in (-1, 0, 1)} <= set(known)
    rates, decays = {point[0] for point in known}, {point[1] for point in known}
    assert len(known) == len(rates) * len(decays)


def test_it_stops_growing_at_the_limit_and_layer_decay_at_one():
    assert len(searched((9, 0), SweepConfig(max_trials=12))) == 12
    grid = SweepConfig(centre_decay=0.95, max_trials=1000)
    assert {grid.at(point)[1] for point in searched((0, 9), grid)} == {0.9, 0.95, 1.0}


@pytest.fixture
def alone(monkeypatch):
    """One process, which has its claims to itself."""
    monkeypatch.setattr(study_module, "CLAIM_SECONDS", 0.01)


@pytest.fixture
def stand_in(monkeypatch, alone):
    """Fine-tuning that knows its result: best at base_lr 2e-3, layer_decay 0.75."""
    tried = []

    def run(config, start):
        tried.append((config.optim.base_lr, config.layer_decay))
        if stop_at and len(tried) == stop_at[0]:
            stop_at.clear()
            raise KeyboardInterrupt
        if config.optim.base_lr > 3e-3:
            raise RunError("not finite")
        top1 = 60 - 1e4 * abs(config.optim.base_lr - 2e-3) - 10 * abs(config.layer_decay - 0.75)
        return FinetuneResult(None, True, 1, top1, 100.0, None)

    stop_at = []
    monkeypatch.setattr(sweep_module, "run_finetuning", run)
    return tried, stop_at


def test_it_finds_the_best_and_a_failed_run_costs_its_point(stand_in, tmp_path):
    tried, _ = stand_in
    said = []
    found = sweep(
        FinetuneConfig(encoder="timm:vit_tiny_patch16_224", data="demo:digits", out=str(tmp_path)),
        SweepConfig(),
        True,
        said.append,
    )
    assert found.best == (2e-3, 0.75)
    assert not found.stopped_growing
    assert len(tried) == len(set(tried)) == 12
    assert sum(line.startswith("failed") for line in said) == 3
    values = json.loads((tmp_path / "sweep.json").read_text())
    assert values["best"] == {"base_lr": 2e-3, "layer_decay": 0.75, "top1": 60.0}
    assert len(values["trials"]) == 9


def test_it_goes_on_after_a_stop(stand_in, tmp_path):
    tried, stop_at = stand_in
    stop_at.append(5)
    config = FinetuneConfig(encoder="timm:vit_tiny_patch16_224", data="demo:digits", out=str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        sweep(config, SweepConfig(), True, lambda _: None)
    assert len(tried) == 5
    sweep(config, SweepConfig(), True, lambda _: None)
    assert len(tried) == 13  # the one that was broken off, again


def test_a_point_of_a_killed_process_is_tried_again(stand_in, tmp_path, monkeypatch):
    tried, _ = stand_in
    monkeypatch.setattr(study_module, "HEARTBEAT_SECONDS", 1)
    monkeypatch.setattr(sweep_module, "POLL_SECONDS", 0.5)
    config = FinetuneConfig(
        encoder="timm:vit_tiny_patch16_224", data="demo:digits", out=str(tmp_path), precision="32-true"
    )
    study = study_module.open_study(config, SweepConfig(centre_lr=1e-3, centre_decay=0.75), tmp_path)
    dead = study.ask()
    dead.set_user_attr("point", [0, 0])
    storage: Any = study._storage
    storage.record_heartbeat(dead._trial_id)
    found = sweep(config, SweepConfig(), True, lambda _: None)
    assert (1e-3, 0.75) in tried
    assert len(found.accuracy) == 9


@pytest.mark.usefixtures("alone")
def test_a_stop_ends_the_sweep(monkeypatch, tmp_path):
    tried = []

    def stopped(config, start):
        tried.append(config)
        return FinetuneResult(None, False, 1, 0.0, 0.0, 15)

    monkeypatch.setattr(sweep_module, "run_finetuning", stopped)
    with pytest.raises(StoppedError) as error:
        sweep(
            FinetuneConfig(encoder="timm:vit_tiny_patch16_224", data="demo:digits", out=str(tmp_path)),
            SweepConfig(),
            True,
            print,
        )
    assert error.value.exit_code == 143
    assert len(tried) == 1


def test_a_study_holds_one_kind_of_fine_tuning(stand_in, tmp_path):
    config = FinetuneConfig(encoder="timm:vit_tiny_patch16_224", data="demo:digits", out=str(tmp_path))
    sweep(config, SweepConfig(), True, lambda _: None)
    for other, grid in [(replace(config, epochs=3.0), SweepConfig()), (config, SweepConfig(lr_factor=3))]:
        with pytest.raises(UsageError, match="give another --study"):
            sweep(other, grid, True, lambda _: None)
    sweep(config, SweepConfig(study="two", lr_factor=3), True, lambda _: None)


def work(arguments):
    """A process of several that share a study; notes what it tried."""
    out, number = arguments
    tried = []

    def run(config, start):
        tried.append((config.optim.base_lr, config.layer_decay))
        time.sleep(0.2)
        away = abs(config.optim.base_lr - 1e-3) + abs(config.layer_decay - 0.75)
        return FinetuneResult(None, True, 1, 50 - away, 0.0, None)

    sweep_module.run_finetuning = run
    sweep_module.POLL_SECONDS = 0.2
    config = FinetuneConfig(
        encoder="timm:vit_tiny_patch16_224",
        data="demo:digits",
        out=str(out / f"p{number}"),
        precision="32-true",
    )
    sweep(config, SweepConfig(storage=f"sqlite:///{out / 'shared.db'}"), True, lambda _: None)
    return tried


def test_processes_share_a_study_from_its_first_moment(tmp_path):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        parts = pool.map(work, [(tmp_path, 0), (tmp_path, 1)], chunksize=1)
    tried = [point for part in parts for point in part]
    assert len(tried) == len(set(tried)) == 9


@pytest.mark.usefixtures("alone")
def test_the_command_draws_a_heat_map(photos, tmp_path, capsys):
    flags = "--encoder none --model resnet10t --image-size 32 --batch-size 8 --steps 1 --workers 0 --quiet"
    command = [
        "sweep",
        "--data",
        str(photos),
        "--out",
        str(tmp_path / "s"),
        "--max-trials",
        "9",
        "--layer-decay",
        "0.75",
        *flags.split(),
    ]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "best: base_lr" in text
    assert (tmp_path / "s" / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "s" / "runs").iterdir())) == 9
    assert main(command) == 0
