"""Did pre-training pay? A backbone from scratch and pre-trained, fine-tuned alike (paper: tables 3, 4).

Arms differ in what they start from, and in nothing else but two things: from scratch all layers learn equally
fast (layer_decay = 1), and the last arm trains for as long as pre-training and fine-tuning take together.
"""

import json
import multiprocessing
import statistics
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fastmim.config import FinetuneConfig, build, check_least, read_yaml
from fastmim.config.finetune import SCRATCH, WITH_TIMM_WEIGHTS
from fastmim.data.loader import available_cpus
from fastmim.errors import RunError, StoppedError, UsageError
from fastmim.train.checkpoint import write_atomically
from fastmim.train.rundir import CONFIG
from fastmim.train.runlog import METRICS, read_metrics
from fastmim.transfer.classify import run_finetuning
from fastmim.transfer.comparison import CONFIDENCE, FROM_SCRATCH, LONGER, OURS, Cell, Payoff, verdicts
from fastmim.transfer.results import RESULTS
from fastmim.transfer.weights import read_encoder

PAYOFF = "payoff.json"
# What a classifier adds to a backbone's arguments: the arms choose these alike.
NOT_THE_BACKBONE = ("img_size", "num_classes", "global_pool", "drop_path_rate", "in_chans")


@dataclass(frozen=True)
class PayoffConfig:
    """What is compared."""

    shares: tuple[str, ...] = ("0.01", "0.1", "1")
    """Labels that are used: shares of each class (0.01), or numbers of each (10/class)."""
    seeds: int = 3
    """Fine-tuning runs of each arm: each draws its labels, order, augmentations and new weights anew."""
    against: tuple[str, ...] = ()
    """Further starting points: other runs, or timm:NAME for timm's own weights."""
    equal_time: bool = True
    """Also train from scratch, on the most labels, for as long as pre-training and fine-tuning took."""
    processes: int = 1
    """Runs at a time, on a CPU."""

    def __post_init__(self) -> None:
        check_least(self, {"seeds": 1, "processes": 1})
        if not self.shares:
            raise UsageError("shares is empty: give shares of the labels, as 0.01 0.1 1")


@dataclass(frozen=True)
class _Job:
    arm: str
    share: str
    config: FinetuneConfig


def payoff(config: FinetuneConfig, what: PayoffConfig, quiet: bool = False) -> Payoff:
    """Fine-tune every arm with every share and seed, and compare; finished runs in config.out are kept.

    Args:
        config: how to fine-tune; ``encoder`` is what is judged, ``out`` the folder of all runs.

    Raises:
        UsageError: a setting, path or model that does not work.
        RunError: a run failed.
    """
    if config.labels is not None:
        raise UsageError(f"labels = {config.labels}: payoff takes --shares")
    if config.encoder in ("", SCRATCH):
        raise UsageError("encoder is missing: give the run, or the encoder.safetensors, that is to be judged")
    out = Path(config.out).expanduser()
    if not config.out:
        raise UsageError("out is missing: give a folder for the runs and the comparison")
    scratch = _scratch_of(config)
    jobs = [
        job
        for share in what.shares
        for seed in range(config.seed, config.seed + what.seeds)
        for job in _arms(config, scratch, what, share, seed, out)
    ]
    results = _run_all(jobs, what.processes, quiet)
    seconds = _pretraining_seconds(config.encoder)
    if what.equal_time and seconds is not None:
        most = max(what.shares, key=lambda share: _images(results, share))
        longer = [
            _longer(job, seconds, results[_key(job)]["seconds"], scratch, out)
            for job in jobs
            if job.arm == OURS and job.share == most
        ]
        results |= _run_all(longer, what.processes, quiet)
        jobs += longer
    cells = tuple(_cells(jobs, results))
    found = Payoff(cells, seconds, tuple(verdicts(cells, seconds)))
    values = {
        **asdict(found),
        "cells": [
            asdict(c) | {"mean": c.mean, "interval": None if len(c.top1) < 2 else c.interval} for c in cells
        ],
        "confidence": CONFIDENCE,
        "encoder": config.encoder,
        "data": config.data,
    }
    content = json.dumps(values, indent=2).encode() + b"\n"
    write_atomically(out / PAYOFF, lambda file: file.write(content))
    return found


def _scratch_of(config: FinetuneConfig) -> FinetuneConfig:
    """The same backbone without weights, seeing images scaled alike."""
    if config.encoder.startswith(WITH_TIMM_WEIGHTS):
        name = config.encoder.removeprefix(WITH_TIMM_WEIGHTS)
        return replace(config, encoder=SCRATCH, model=name.partition(".")[0], layer_decay=1.0)
    origin, _ = read_encoder(config.encoder)
    kwargs = {
        name: value
        for name, value in origin.get("full_kwargs", origin["kwargs"]).items()
        if name not in NOT_THE_BACKBONE
    }
    crop = config.crop
    if crop.mean is None:
        crop = replace(crop, mean=tuple(origin["mean"]), std=tuple(origin["std"]))
    return replace(
        config,
        encoder=SCRATCH,
        model=origin["model"],
        model_kwargs=kwargs,
        in_chans=origin["in_chans"],
        layer_decay=1.0,
        crop=crop,
    )


def _arms(
    config: FinetuneConfig, scratch: FinetuneConfig, what: PayoffConfig, share: str, seed: int, out: Path
) -> Iterator[_Job]:
    starts = {FROM_SCRATCH: scratch, OURS: config}
    starts |= {other: replace(config, encoder=other) for other in what.against}
    for arm, start in starts.items():
        run = out / "runs" / _folder(arm, share, seed)
        yield _Job(arm, share, replace(start, labels=share, seed=seed, out=str(run)))


def _folder(arm: str, share: str, seed: int) -> str:
    name = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in arm)
    return f"{name.strip('-.')}_{share.replace('/', '-per-')}_seed{seed}"


def _longer(job: _Job, pretraining: float, own: float, scratch: FinetuneConfig, out: Path) -> _Job:
    """From scratch for as long as pre-training and this job took together."""
    factor = (pretraining + own) / own
    seed = job.config.seed
    run = out / "runs" / _folder("scratch-longer", job.share, seed)
    config = replace(scratch, labels=job.share, seed=seed, out=str(run))
    if config.steps:
        config = replace(config, steps=round(config.steps * factor))
    else:
        config = replace(config, epochs=round(config.epochs * factor, 2))
    return _Job(LONGER, job.share, _as_stored(config))


def _as_stored(config: FinetuneConfig) -> FinetuneConfig:
    """Of a run that was begun, the length it has: measured seconds are never the same twice."""
    file = Path(config.out) / CONFIG
    if not file.is_file():
        return config
    stored = build(FinetuneConfig, read_yaml(file), f"{file}: ")
    return replace(config, epochs=stored.epochs, steps=stored.steps)


def _key(job: _Job) -> str:
    return job.config.out


def _run_all(jobs: list[_Job], processes: int, quiet: bool) -> dict[str, dict[str, Any]]:
    """results.json of each job, by its folder."""
    if processes == 1:
        return {_key(job): _run(job, quiet) for job in jobs}
    threads = max(1, available_cpus() // processes)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, torch.set_num_threads, (threads,)) as pool:
        pending = {_key(job): pool.submit(_run, job, True) for job in jobs}
        done = {}
        for key, future in pending.items():
            done[key] = future.result()
            if not quiet:
                print(f"{Path(key).name}: top-1 {done[key]['top1']:.2f} %", flush=True)
        return done


def _run(job: _Job, quiet: bool) -> dict[str, Any]:
    result = run_finetuning(job.config, resume=True, quiet=quiet)
    if result.stopped_by is not None:
        raise StoppedError(result.stopped_by)
    file = Path(job.config.out) / RESULTS
    if not file.is_file():
        raise RunError(f"{file} was not written")
    values: dict[str, Any] = json.loads(file.read_text())
    return values


def _images(results: dict[str, dict[str, Any]], share: str) -> int:
    return max(int(values["training_images"]) for values in results.values() if values["labels"] == share)


def _cells(jobs: list[_Job], results: dict[str, dict[str, Any]]) -> Iterator[Cell]:
    places: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for job in jobs:
        places.setdefault((job.arm, job.share), []).append(results[_key(job)])
    for (arm, share), runs in places.items():
        yield Cell(
            arm,
            share,
            tuple(run["top1"] for run in runs),
            statistics.mean(run["seconds"] for run in runs),
            runs[0]["training_images"],
        )


def _pretraining_seconds(encoder: str) -> float | None:
    run = Path(encoder).expanduser()
    run = run if run.is_dir() else run.parent
    if not (run / METRICS).is_file():
        return None
    lines = read_metrics(run)
    return float(lines[-1]["seconds"]) if lines else None
