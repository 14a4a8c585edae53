"""Compare training on a pre-trained backbone with training from scratch (paper: tables 3, 4, 5, 6).

The task is classification, detection or segmentation, as the settings say.

Arms differ in their initial weights and in two settings only: from scratch, all layers have the same learning
rate (layer_decay = 1), and the last arm trains for as long as pre-training and fine-tuning together.
"""

import contextlib
import json
import math
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from fastmim.config import TransferConfig, read_yaml
from fastmim.downstream.backbone import with_factory
from fastmim.downstream.classification.entry import run_finetuning
from fastmim.downstream.classification.outputs import RESULTS
from fastmim.downstream.detection.entry import run_detection
from fastmim.downstream.segmentation.entry import run_segmentation
from fastmim.encoders.names import is_custom
from fastmim.encoders.trust import Trust
from fastmim.errors import RunError, StoppedError, UsageError
from fastmim.studies.arms import Job, arms_of, longer, scratch_of
from fastmim.studies.comparison import CONFIDENCE, Cell, Payoff, verdicts
from fastmim.studies.settings import (
    OURS,
    Metric,
    PayoffConfig,
    check_payoff,
    metric_of,
)
from fastmim.system.documents import Count, Finite, checked, read_json
from fastmim.system.files import write_atomically
from fastmim.system.hardware import available_cpus
from fastmim.system.processes import in_processes
from fastmim.train.distributed import build_fabric, precision_of
from fastmim.train.logs import read_metrics
from fastmim.train.run_files import CONFIG, METRICS
from fastmim.train.settings import StartMode
from fastmim.weights.encoder_file import read_description
from fastmim.weights.spec import parse_weights

PAYOFF = "payoff.json"
HARDWARE = ("device", "processes", "threads")
RUNNERS: dict[str, Callable[..., Any]] = {
    "finetune": run_finetuning,
    "detect": run_detection,
    "segment": run_segmentation,
}


@dataclass(frozen=True)
class _Results:
    """Values of a run's results.json that are used."""

    seconds: Annotated[Finite, Field(ge=0)]
    training_images: Count
    labels: str | None
    device: str
    processes: Count
    threads: Count
    images: Count | None = None
    data_notes: tuple[str, ...] = ()


def payoff(
    config: TransferConfig, what: PayoffConfig, quiet: bool = False, trust_code: bool = False
) -> Payoff:
    """Train every arm with every share and seed, and compare them; finished runs in config.out are kept.

    Args:
        config: settings of the task; ``encoder`` is the encoder to judge, ``out`` the folder of all runs.
        what: arms, labels and seeds.
        trust_code: import and call any factory that the encoders' files name.

    Raises:
        UsageError: a setting, path or model is invalid.
        RunError: a run failed.
    """
    check_payoff(config, what)
    metric = metric_of(config, what)
    out = Path(config.out).expanduser()
    trust = Trust.of(config.model, everything=trust_code)
    # Factories are named by each encoder's file; a timm name is for a file that does not name its model.
    judged = replace(config, model=None) if config.model and is_custom(config.model) else config
    starts = [judged, *(replace(config, encoder=name, model=None) for name in what.against)]
    starts = [with_factory(start, trust) for start in starts]
    unused = trust.names.difference(start.model or "" for start in starts)
    if unused:
        raise UsageError(f"model = {min(unused)}: no encoder has this model; leave it out")
    accelerator = build_fabric(config.accelerator, 1, 1, config.precision)
    if what.processes > 1 and accelerator.device.type != "cpu":
        raise UsageError(f"processes = {what.processes}: parallel runs need --accelerator cpu; else give 1")
    # Chosen once, since it is found by timing and must be equal for all arms.
    precision = precision_of(accelerator)
    config, *others = (replace(start, precision=precision) for start in starts)
    scratch = scratch_of(config, what.scratch_lr)
    jobs = [
        job
        for share in what.shares
        for seed in range(config.seed, config.seed + what.seeds)
        for job in arms_of([scratch, config, *others], share, seed, out)
    ]
    results = _run_all(jobs, metric, what.processes, quiet)
    seconds, obstacle = _pretraining_seconds(config.encoder, results.values(), what)
    if what.equal_time and seconds is not None:
        most = max(what.shares, key=lambda share: _images(results, share))
        more = [
            longer(job, seconds, results[_key(job)]["seconds"], scratch, out)
            for job in jobs
            if job.arm == OURS and job.share == most
        ]
        results |= _run_all(more, metric, what.processes, quiet)
        jobs += more
    cells = tuple(_cells(jobs, results, metric))
    lines = [
        *verdicts(cells, metric),
        *([f"equal total time was not compared: {obstacle}"] if obstacle else []),
    ]
    described = _description(config.encoder)
    if described is not None and described["method"] == "fine-tuned":
        lines.append("the encoder was already fine-tuned, maybe on the same labels")
    if _measured_images_were_seen(config):
        lines.append(
            "the validation images were among those that the encoder was pre-trained on (unlabelled)"
        )
    lines += dict.fromkeys(
        f"data: {note}" for values in results.values() for note in values.get("data_notes", ())
    )
    found = Payoff(cells, seconds, tuple(lines), metric)
    values = {
        **asdict(found),
        "metric": metric.name,
        "cells": [
            asdict(c) | {"mean": c.mean, "interval": c.known_interval, "bounds": c.bounds} for c in cells
        ],
        "confidence": CONFIDENCE,
        "encoder": config.encoder,
        "data": config.data,
    }
    content = json.dumps(values, indent=2).encode() + b"\n"
    write_atomically(out / PAYOFF, lambda file: file.write(content))
    return found


def _key(job: Job) -> str:
    return job.config.out


def _run_all(jobs: list[Job], metric: Metric, processes: int, quiet: bool) -> dict[str, dict[str, Any]]:
    """Run the jobs and return their results.json, by folder."""
    shown = not quiet and processes > 1  # otherwise, the runs print their own results
    done: dict[str, dict[str, Any]] = {}
    # When this process is stopped, the others write a checkpoint and end.
    for number, values in in_processes(
        _run,
        (quiet or processes > 1, metric),
        jobs,
        processes,
        threads=max(1, available_cpus() // processes),
        start_method="spawn",
        terminate=True,
    ):
        done[key := _key(jobs[number])] = values
        if shown:
            print(f"{Path(key).name}: {metric.name} {score_of(values, metric, key):.2f} %", flush=True)
    return done


def _run(quiet: bool, metric: Metric, job: Job) -> dict[str, Any]:
    result = RUNNERS[job.config.verb](job.config, StartMode("or-begin", quiet=quiet))
    if result.stopped_by is not None:
        raise StoppedError(result.stopped_by, f"in {job.config.out}; the same command resumes it")
    file = Path(job.config.out) / RESULTS
    if not file.is_file():
        raise RunError(f"{file} was not written")
    values: dict[str, Any] = read_json(file)
    checked(_Results, values, str(file))
    score_of(values, metric, str(file))
    return values


def score_of(values: dict[str, Any], metric: Metric, where: str) -> float:
    """Return the score in the values of a run's results.json.

    Raises:
        RunError: the run has no such score.
    """
    found: Any = values
    for key in metric.keys:
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, int | float) or not 0 <= found <= 100 or not math.isfinite(found):
        raise RunError(f"{where}: {'.'.join(metric.keys)} = {found} is no {metric.name}, 0 to 100 %")
    return float(found)


def _images(results: dict[str, dict[str, Any]], share: str) -> int:
    return max(int(values["training_images"]) for values in results.values() if values["labels"] == share)


def _cells(jobs: list[Job], results: dict[str, dict[str, Any]], metric: Metric) -> Iterator[Cell]:
    places: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for job in jobs:
        places.setdefault((job.arm, job.share), []).append(results[_key(job)])
    for (arm, share), runs in places.items():
        yield Cell(
            arm,
            share,
            tuple(score_of(run, metric, arm) for run in runs),
            statistics.mean(run["seconds"] for run in runs),
            runs[0]["training_images"],
            runs[0].get("images") if metric.share_of_images else None,
        )


def _pretraining_seconds(
    encoder: str, results: Iterable[dict[str, Any]], what: PayoffConfig
) -> tuple[float | None, str]:
    """Return the time of pre-training, or the reason why it cannot be compared with fine-tuning."""
    if not what.equal_time:
        return None, ""
    described = _description(encoder)
    if described is None:
        source = "timm's weights" if parse_weights(encoder).kind == "timm" else encoder
        return None, f"the training time of {source} is unknown"
    run = parse_weights(encoder).path
    run = run if run.is_dir() else run.parent
    lines = read_metrics(run) if (run / METRICS).is_file() else []
    if described["method"] == "fine-tuned":
        return None, "the encoder was already fine-tuned"
    if not lines:
        return None, "the encoder is not in the folder of its run, which has the training time"
    ran_on, runs_on = described.get("trained_on"), [{key: r[key] for key in HARDWARE} for r in results]
    if any(here != ran_on for here in runs_on):
        return None, f"pre-training ran on {_hardware(ran_on)}, fine-tuning on {_hardware(runs_on[0])}"
    return float(lines[-1]["seconds"]), ""


def _hardware(known: dict[str, Any] | None) -> str:
    return ", ".join(f"{value} {key}" for key, value in known.items()) if known else "unknown hardware"


def _description(encoder: str) -> dict[str, Any] | None:
    """Return the description in an encoder file; None for other weights."""
    spec = parse_weights(encoder)
    with contextlib.suppress(UsageError):
        return read_description(spec.file)[1] if spec.kind == "file" else None
    return None


def _measured_images_were_seen(config: TransferConfig) -> bool:
    """Return whether pre-training used the same data, which includes the validation images."""
    run = parse_weights(config.encoder).path
    file = (run if run.is_dir() else run.parent) / CONFIG
    if not file.is_file():
        return False
    data = read_yaml(file).get("data")
    return data == config.data or Path(str(data)).resolve() == Path(config.data).resolve()
