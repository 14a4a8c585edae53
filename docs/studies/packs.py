"""What a pack's short side costs: pre-train on packs and on the files, fine-tune all on the files.

    python docs/studies/packs.py --data clothing/train --labelled clothing --out runs/packs

A small ViT is pre-trained at 128 pixels on each version of the images and fine-tuned at 128 pixels, once for
each seed; the rest is alike. Differences are from the files, paired by seed, with Student's 95 % interval.
Finished runs are kept in --out and not done again.
"""

import argparse
import json
import math
import multiprocessing
import statistics
from pathlib import Path
from typing import Any

import torch

import fastmim

SIDES = (144, 192, 256)
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
VIT: dict[str, Any] = {
    "model": "vit_tiny_patch16_224",
    "model_kwargs": {"embed_dim": 128, "depth": 6, "num_heads": 2},
}
RUN: dict[str, Any] = {
    "image_size": 128,
    "batch_size": 64,
    "workers": 0,
    "precision": "32-true",
    "accelerator": "cpu",
    "optim": {"base_lr": 4e-3},  # few steps: as in the other small studies
    "quiet": True,
    "resume": "or-begin",
}


def do(job: tuple[str, str, int, argparse.Namespace]) -> float:
    """Top-1 in per cent of one version of the images and one seed."""
    version, data, seed, arguments = job
    torch.set_num_threads(1)
    out = Path(arguments.out) / f"{version}-seed{seed}"
    result = out / "result.json"
    if not result.exists():
        start: dict[str, Any] = {"encoder": "none", **VIT}
        if version != "scratch":
            fastmim.pretrain(
                data=data, out=out / "pretrain", seed=seed, epochs=arguments.epochs, **RUN, **VIT
            )
            start = {"encoder": str(out / "pretrain")}
        found = fastmim.finetune(
            data=arguments.labelled, out=out / "finetune", seed=seed, epochs=arguments.tuned, **start, **RUN
        )
        result.write_text(json.dumps(found.top1))
    top1: float = json.loads(result.read_text())
    return top1


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="unlabelled images")
    parser.add_argument("--labelled", required=True, help="folder with train/CLASS and test/CLASS")
    parser.add_argument("--out", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--tuned", type=float, default=5, help="epochs of fine-tuning")
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    versions = {"files": arguments.data, "scratch": ""}
    for side in SIDES:
        packed = Path(arguments.out) / f"packed{side}"
        fastmim.pack(arguments.data, packed, short_side=side)
        versions[str(side)] = str(packed)
    jobs = [
        (name, data, seed, arguments) for seed in range(arguments.seeds) for name, data in versions.items()
    ]
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
        top1 = dict(zip([(job[0], job[2]) for job in jobs], pool.map(do, jobs, chunksize=1), strict=True))
    print("| pre-trained on | top-1, % | against the files |\n|---|---:|---:|")
    for name in versions:
        mine = [top1[name, seed] for seed in range(arguments.seeds)]
        steps = [top1[name, seed] - top1["files", seed] for seed in range(arguments.seeds)]
        half = (
            T95[len(steps)] * statistics.stdev(steps) / math.sqrt(len(steps)) if len(steps) > 1 else math.nan
        )
        against = "" if name == "files" else f"{statistics.mean(steps):+.2f} ± {half:.2f}"
        print(f"| {name} | {statistics.mean(mine):.2f} | {against} |")


if __name__ == "__main__":
    main()
