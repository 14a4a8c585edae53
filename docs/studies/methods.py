"""The methods side by side on CIFAR-10, then fine-tuned on a tenth of the labels: see docs/results.md.

    python docs/studies/methods.py --data cifar10 --out runs/methods --minutes 5

``--data`` holds train/ and test/ with a folder a class. Three tables: every method for the same time (a run's
length in steps comes from a short trial of its own speed); for the same number of epochs at two resolutions;
with and without a teacher. Runs use one CPU core each; finished ones are kept in --out and not done again, so
the same command goes on after a stop. The loss is that on held-out images as a share of the trivial
predictor's.
"""

import argparse
import json
import math
import multiprocessing
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

import fastmim

TRIAL_STEPS = 60
SEEDS = 3
VIT: dict[str, Any] = {
    "model": "vit_tiny_patch16_224",
    "model_kwargs": {"patch_size": 4, "embed_dim": 128, "depth": 4, "num_heads": 4},
}
SWIN = {  # stride 8 at the end: three stages
    "model": "swin_tiny_patch4_window7_224",
    "model_kwargs": {
        "patch_size": 2,
        "window_size": 4,
        "embed_dim": 48,
        "depths": [2, 2, 2],
        "num_heads": [2, 4, 8],
    },
}
CONVNEXT = {  # stride 8 at the end: four stages, the first at every pixel
    "model": "convnextv2_atto",
    "model_kwargs": {"patch_size": 1, "depths": [1, 1, 2, 1], "dims": [24, 48, 96, 192]},
}
COMMON: dict[str, Any] = {
    "image_size": 32,
    "batch_size": 128,
    "optim": {"base_lr": 2e-3},
    "crop": {"scale": (0.35, 1.0)},
    "held_out": 256,
    "workers": 0,
    "precision": "bf16-mixed",
    "deterministic": False,
    "evaluations": 4,
    "log_every_steps": 20,
    "quiet": True,
}
HOG = {"target": {"name": "hog", "cell": 4}}
SMALL_DECODER = {"decoder": {"depth": 1, "width": 128}}
LINEAR = {"decoder": {"depth": 0}}
FINETUNE: dict[str, Any] = {
    "image_size": 32,
    "batch_size": 64,
    "workers": 0,
    "precision": "bf16-mixed",
    "deterministic": False,
    "evaluations": 1,
    "log_every_steps": 50,
    "layer_decay": 0.75,
    "drop_path": 0.0,
    "head_std": 0.02,
    "optim": {"base_lr": 4e-3},
    "crop": {"scale": (0.35, 1.0)},
    "augment": {"mixup": 0, "cutmix": 0, "rand_magnitude": 5, "erase": 0},
    "quiet": True,
}


class Arm(NamedTuple):
    """One line of a table."""

    name: str
    seeds: int
    settings: dict[str, Any]
    minutes: float = 1.0
    """What --minutes is multiplied by."""
    like: str | None = None
    """The arm whose steps, and so epochs, this one has, too; then minutes do not count."""
    teacher: str | None = None
    """The arm whose network, fine-tuned on the same labels, teaches this one."""


FASTMIM = {**VIT, "mask": {"size": 4}, **HOG, **SMALL_DECODER}
MAE = {**VIT, "method": "mae", "target": {"name": "pixels-norm"}, **SMALL_DECODER}
DROP = {**VIT, "method": "mae", **HOG, **SMALL_DECODER}
EQUAL_TIME = (
    Arm("fastmim, ViT", SEEDS, FASTMIM),
    Arm("mae, ViT", SEEDS, MAE),
    Arm(
        "simmim, ViT",
        SEEDS,
        {**VIT, "method": "simmim", "mask": {"ratio": 0.6, "size": 8, "place": "patch"}, **LINEAR},
    ),
    Arm("fastmim-drop, ViT", SEEDS, DROP),
    Arm("maskfeat, ViT", 1, {**VIT, "method": "maskfeat", **HOG, **LINEAR}),
    Arm("lomar, ViT", 1, {**VIT, "method": "lomar", "lomar": {"window": 4}, **LINEAR}),
    Arm("fastmim, Swin", 1, {**SWIN, "mask": {"size": 8}, **HOG, **SMALL_DECODER}),
    Arm("greenmim, Swin", 1, {**SWIN, "method": "greenmim", **SMALL_DECODER}),
    Arm("ummae, Swin", 1, {**SWIN, "method": "ummae", "mask": {"size": 4}, **SMALL_DECODER}),
    Arm("fastmim, ConvNeXt V2", 1, {**CONVNEXT, "mask": {"size": 8}, **HOG, **SMALL_DECODER}),
    Arm("fcmae, ConvNeXt V2", 1, {**CONVNEXT, "method": "fcmae", **SMALL_DECODER}),
)
SCRATCH = (
    Arm("scratch, ViT", SEEDS, VIT),
    Arm("scratch, Swin", 1, SWIN),
    Arm("scratch, ConvNeXt V2", 1, CONVNEXT),
)
SMALL: dict[str, Any] = {
    "image_size": 20
}  # 20 of 32 pixels, as 128 (more exactly 140) of 224: 25 patches of 64
EQUAL_EPOCHS = (
    Arm("mae, ViT, epochs of fastmim", SEEDS, MAE, like="fastmim, ViT"),
    Arm("fastmim-drop, ViT, epochs of fastmim", SEEDS, DROP, like="fastmim, ViT"),
    Arm("fastmim, ViT, at 20 pixels", SEEDS, FASTMIM | SMALL, like="fastmim, ViT"),
    Arm("mae, ViT, at 20 pixels", SEEDS, MAE | SMALL, like="fastmim, ViT"),
    Arm("fastmim-drop, ViT, at 20 pixels", SEEDS, DROP | SMALL, like="fastmim, ViT"),
)
TEACHER = Arm(
    "teacher, larger ViT",
    1,
    FASTMIM | {"model_kwargs": VIT["model_kwargs"] | {"embed_dim": 192, "depth": 6, "num_heads": 6}},
    minutes=3,
)
TAUGHT = Arm(
    "fastmim, ViT, with the teacher",
    SEEDS,
    FASTMIM,
    like="fastmim, ViT",
    teacher=TEACHER.name,
)
PHASES = ((*EQUAL_TIME, *SCRATCH, TEACHER), (*EQUAL_EPOCHS, TAUGHT))  # the second needs the first
TABLES = {
    "Equal time": (*EQUAL_TIME, *SCRATCH),
    "Equal epochs, two resolutions": (EQUAL_TIME[0], *EQUAL_EPOCHS),
    "With a teacher": (TEACHER, EQUAL_TIME[0], TAUGHT),
}


class Job(NamedTuple):
    arm: Arm
    seed: int
    data: str
    out: Path
    minutes: float
    epochs: float


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def run_of(job: Job, arm: str) -> Path:
    """Where an arm's run with this job's seed is, or its only one."""
    seeds = {a.name: a.seeds for phase in PHASES for a in phase}[arm]
    return job.out / f"{file_name(arm)}-{job.seed % seeds}"


def file_name(arm: str) -> str:
    return arm.replace(", ", "-").replace(" ", "")


def steps_of(job: Job, run: Path, settings: dict[str, Any]) -> int:
    """So many as fit the minutes, by a trial, or as many as another arm has."""
    if job.arm.like:
        return int(run_of(job, job.arm.like).with_suffix(".steps").read_text())
    plan = run.with_suffix(".steps")
    if not plan.is_file():
        trial = fastmim.pretrain(out=run.with_suffix(".trial"), steps=TRIAL_STEPS, overwrite=True, **settings)
        speeds = [line["images_per_second"] for line in metrics(trial.run)[1:]]
        seconds = 60 * job.minutes * job.arm.minutes
        plan.write_text(str(round(seconds * statistics.median(speeds) / settings["batch_size"])))
    return int(plan.read_text())


def pretrained(job: Job, run: Path) -> dict[str, Any]:
    """Pre-train; what the run says of itself."""
    settings = COMMON | job.arm.settings | {"data": f"{job.data}/train", "seed": job.seed}
    if job.arm.teacher:
        settings["distill"] = {"teacher": str(teacher_of(job, job.arm.teacher))}
    done = fastmim.pretrain(out=run, steps=steps_of(job, run, settings), resume="or-begin", **settings)
    lines = metrics(done.run)
    return {
        "share": done.held_out_loss / done.trivial_loss,
        "images_per_second": statistics.median(line["images_per_second"] for line in lines),
        "memory_mb": lines[-1]["peak_memory_mb"],
        "minutes": lines[-1]["seconds"] / 60,
        "steps": done.steps,
    }


def teacher_of(job: Job, arm: str) -> Path:
    """The one pre-trained teacher, fine-tuned on this job's labels: it must know no others."""
    tuned = job.out / f"{file_name(arm)}-{job.seed}.classes"
    if not (tuned / "results.json").is_file():
        start = {"encoder": run_of(job, arm)}
        result = {"arm": arm, "seed": job.seed, "top1": tune(job, tuned, start)}
        tuned.with_suffix(".json").write_text(json.dumps(result))
    return tuned


def tune(job: Job, out: Path, start: dict[str, Any]) -> float:
    """Fine-tune on the labels of the job's seed; top-1, in per cent."""
    tuned = fastmim.finetune(
        data=job.data,
        out=out,
        labels="0.1",
        epochs=job.epochs,
        seed=job.seed,
        resume="or-begin",
        **FINETUNE | start,
    )
    return float(tuned.top1)


def carry_out(job: Job) -> dict[str, Any]:
    torch.set_num_threads(1)
    run = run_of(job, job.arm.name)
    found = run.with_suffix(".json")
    if found.is_file():
        kept: dict[str, Any] = json.loads(found.read_text())
        return kept
    result: dict[str, Any] = {"arm": job.arm.name, "seed": job.seed}
    start: dict[str, Any] = {
        "encoder": "none",
        **{k: job.arm.settings[k] for k in ("model", "model_kwargs")},
        "layer_decay": 1.0,
    }
    if not job.arm.name.startswith("scratch"):
        result |= pretrained(job, run)
        start = {"encoder": run}
    result["top1"] = tune(job, run.with_suffix(".classes"), start)
    found.write_text(json.dumps(result))
    return result


COLUMNS = (("steps", 0), ("minutes", 1), ("images_per_second", 0), ("memory_mb", 0))  # and digits


def table(results: list[dict[str, Any]]) -> Iterator[str]:
    """Markdown; intervals are those of Student's t over the seeds, 95 %."""
    yield "| | seeds | steps | minutes | images/s | memory, MB | loss, % of trivial | top-1, % |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    for arm in dict.fromkeys(result["arm"] for result in results):
        rows = [result for result in results if result["arm"] == arm]
        cells = [arm, str(len(rows))]
        for name, digits in COLUMNS:
            values = [row[name] for row in rows if name in row]
            cells.append(f"{statistics.mean(values):.{digits}f}" if values else "")
        shares = [100 * row["share"] for row in rows if "share" in row]
        cells += [with_interval(values) if values else "" for values in (shares, [r["top1"] for r in rows])]
        yield "| " + " | ".join(cells) + " |"


def with_interval(values: list[float]) -> str:
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.2f}"
    from scipy.stats import t

    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.2f} ± {half:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--epochs", type=float, default=15.0, help="of fine-tuning")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--arms", nargs="*", help="parts of their names; default: all")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    every = {arm.name: arm for phase in PHASES for arm in phase}
    wanted = [arm for arm in every.values() if any(part in arm.name for part in arguments.arms or [""])]
    names = {name for arm in wanted for name in (arm.name, arm.like, arm.teacher)}
    results: dict[str, list[dict[str, Any]]] = {}
    for phase in PHASES:
        jobs = [
            Job(arm, seed, arguments.data, arguments.out, arguments.minutes, arguments.epochs)
            for seed in range(SEEDS)
            for arm in phase
            if seed < arm.seeds and arm.name in names
        ]
        with multiprocessing.get_context("spawn").Pool(arguments.processes, maxtasksperchild=1) as pool:
            for result in pool.imap_unordered(carry_out, jobs):
                print(json.dumps(result), flush=True)
                results.setdefault(result["arm"], []).append(result)
    for tuned in (arguments.out / f"{file_name(TEACHER.name)}-{seed}.json" for seed in range(1, SEEDS)):
        if tuned.is_file():
            results[TEACHER.name].append(json.loads(tuned.read_text()))
    for title, arms in TABLES.items():
        rows = [result for arm in arms for result in results.get(arm.name, ())]
        if rows:
            print("\n".join(["", f"### {title}", "", *table(rows)]))


if __name__ == "__main__":
    main()
