"""What a pack's short side costs: pre-train on packs and on the files, fine-tune all on the files.

    python docs/studies/packs.py --data clothing/train --labelled clothing --out runs/packs

A small ViT is pre-trained at 128 pixels on each version of the images and fine-tuned at 128 pixels, once for
each seed; the rest is alike. Differences are from the files, paired by seed, with Student's 95 % interval.
Held-out losses are on the images of each version, so they tell how hard those are, too. A pack that holds the
files' own bytes, as none is large enough to be made smaller, gets no run of its own. Finished runs are kept
in --out and not done again.
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
from fastmim.data.sources.open import open_images

SCRATCH = "from scratch"
SIDES = (144, 192, 256)
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
VIT: dict[str, Any] = {
    "model": "vit_tiny_patch16_224",
    "model_kwargs": {"embed_dim": 96, "depth": 4, "num_heads": 3},
}
RUN: dict[str, Any] = {
    "image_size": 128,
    "batch_size": 32,
    "workers": 0,
    "precision": "32-true",
    "accelerator": "cpu",
    "optim": {"base_lr": 8e-3},  # few steps of small batches
    "quiet": True,
    "resume": "or-begin",
}


# Few epochs of a small model: what is meant for hundreds would hide what it knows.
TUNED: dict[str, Any] = {
    "augment": {"rand_magnitude": 0.0, "mixup": 0.0, "cutmix": 0.0, "erase": 0.0},
    "crop": {"scale": (0.35, 1.0)},
    "drop_path": 0.0,
}


def do(job: tuple[str, str, int, argparse.Namespace]) -> dict[str, float]:
    """Top-1 in per cent, and held-out losses, of one version of the images and one seed."""
    version, data, seed, arguments = job
    torch.set_num_threads(1)
    out = Path(arguments.out) / f"{version}-seed{seed}"
    result = out / "result.json"
    if not result.exists():
        start: dict[str, Any] = {"encoder": "none", **VIT}
        losses: dict[str, float | None] = {}
        if version != SCRATCH:
            learned = fastmim.pretrain(
                data=data, out=out / "pretrain", seed=seed, epochs=arguments.epochs, **RUN, **VIT
            )
            losses = {"held_out": learned.held_out_loss, "trivial": learned.trivial_loss}
            start = {"encoder": str(out / "pretrain")}
        found = fastmim.finetune(
            data=arguments.labelled,
            out=out / "finetune",
            seed=seed,
            epochs=arguments.tuned,
            **start,
            **RUN,
            **TUNED,
        )
        result.write_text(json.dumps({"top1": found.top1, **losses}))
    read: dict[str, float] = json.loads(result.read_text())
    return read


def is_the_files(source: str, packed: Path) -> bool:
    """Whether a pack holds the very bytes of the files."""
    files, copies = open_images(source), open_images(str(packed))
    same = (files.read(index) == copies.read(index) for index in range(len(files)))
    return len(files) == len(copies) and all(same)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="unlabelled images")
    parser.add_argument("--labelled", required=True, help="folder with train/CLASS and test/CLASS")
    parser.add_argument("--out", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--tuned", type=float, default=8, help="epochs of fine-tuning")
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    versions = {"files": arguments.data, SCRATCH: ""}
    for side in SIDES:
        packed = Path(arguments.out) / f"packed{side}"
        fastmim.pack(arguments.data, packed, short_side=side)
        if is_the_files(arguments.data, packed):
            print(f"A pack of {side} holds the files as they are.")
        else:
            versions[f"pack of {side}"] = str(packed)
    jobs = [
        (name, data, seed, arguments) for seed in range(arguments.seeds) for name, data in versions.items()
    ]
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
        found = dict(zip([(job[0], job[2]) for job in jobs], pool.map(do, jobs, chunksize=1), strict=True))
    print("| pre-trained on | held-out loss | trivial | top-1, % | against the files |")
    print("|---|---:|---:|---:|---:|")
    for name in versions:
        mine = [found[name, seed] for seed in range(arguments.seeds)]
        steps = [run["top1"] - found["files", seed]["top1"] for seed, run in enumerate(mine)]
        half = (
            T95[len(steps)] * statistics.stdev(steps) / math.sqrt(len(steps)) if len(steps) > 1 else math.nan
        )
        against = "" if name == "files" else f"{statistics.mean(steps):+.2f} ± {half:.2f}"
        losses = " | ".join(
            "" if name == SCRATCH else f"{statistics.mean(run[key] for run in mine):.4f}"
            for key in ("held_out", "trivial")
        )
        top1 = f"{statistics.mean(run['top1'] for run in mine):.2f}"
        print(f"| {name} | {losses} | {top1} | {against} |")


if __name__ == "__main__":
    main()
