"""Small runs that compare settings, as tables: docs/results.md holds what they gave.

    python docs/studies/studies.py mask --data cifar10/train --probe cifar10 --out runs/studies

Each run pre-trains a small network for seconds to minutes on one CPU core. The loss is that on held-out
images as a share of the constant baseline's (below 100 % something has been learned); intervals are those of
Student's t over the seeds, 95 %. Finished runs are kept in --out and not done again.
"""

import argparse
import contextlib
import json
import math
import multiprocessing
import re
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import tifffile
import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN as IMAGENET_MEAN
from timm.data import IMAGENET_DEFAULT_STD as IMAGENET_STD

import fastmim
from fastmim.config import PretrainConfig, build, read_yaml
from fastmim.data.decode.image import crop_and_resize
from fastmim.data.decode.resize import Box
from fastmim.data.loading.dataset import CropDataset, to_images
from fastmim.data.loading.train_loader import held_out_crops, split_images
from fastmim.data.sources.open import open_images
from fastmim.pretraining import build_method
from fastmim.pretraining.evaluation import HeldOut
from fastmim.train.checkpoint_folder import load_checkpoint

# A quarter of what the paper's ViT-B has at 128 pixels; a mask of 2 x 2 patches hides 4 HOG cells.
COMMON: dict[str, Any] = {
    "image_size": 32,
    "batch_size": 64,
    "target": {"cell": 4},
    "mask": {"size": 8},
    "optim": {"base_lr": 4e-3},
    "decoder": {"depth": 1, "width": 64},
    "held_out": 256,
    "workers": 0,
    "precision": "32-true",
    "evaluations": 4,
    "log_every_steps": 25,
}
VIT = {
    "model": "vit_tiny_patch16_224",
    "model_kwargs": {"patch_size": 4, "embed_dim": 64, "depth": 6, "num_heads": 2},
}
SWIN = {  # stride 16 at the end, as patches are of 2 pixels
    "model": "swin_tiny_patch4_window7_224",
    "model_kwargs": {"patch_size": 2, "embed_dim": 16, "depths": [1, 1, 4, 1], "num_heads": [1, 1, 2, 4]},
}
LARGER_PATCHES = VIT | {"model_kwargs": VIT["model_kwargs"] | {"patch_size": 8}}
RESNET = {
    "model": "resnet18",
    "model_kwargs": {},
    "image_size": 64,
    "target": {"cell": 8},
    "mask": {"size": 16},
}
MEAN, STD = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)


class Run(NamedTuple):
    row: str
    column: str
    settings: dict[str, Any]


def mask(steps: int) -> Iterator[Run]:
    """Table 10b: mask size and ratio."""
    for size in (4, 8, 16):
        for ratio in (0.5, 0.65, 0.75, 0.85):
            settings = VIT | {"steps": steps, "mask": {"size": size, "ratio": ratio}}
            yield Run(f"{size} px", f"ratio {ratio:g}", settings)


def depth(steps: int) -> Iterator[Run]:
    """Table 1c: blocks that are pre-trained."""
    for blocks in (4, 5, 6):
        yield Run("ViT, 6 blocks", str(blocks), VIT | {"steps": steps, "encoder": {"depth": blocks}})
    for blocks in ([1, 1, 4, 0], [1, 1, 2, 1], [1, 1, 4, 1]):
        name = "-".join(map(str, blocks))
        yield Run("Swin, 1-1-4-1", name, SWIN | {"steps": steps, "encoder": {"depth": blocks}})


def decoder(steps: int) -> Iterator[Run]:
    """Table 16: the decoder's depth and width."""
    for blocks in (0, 1, 4):
        for width in (64, 128) if blocks else (64,):
            settings = VIT | {"steps": steps, "decoder": {"depth": blocks, "width": width}}
            yield Run(f"{blocks} blocks", f"width {width}" if blocks else "-", settings)


def progressive(steps: int) -> Iterator[Run]:
    """Table 3: growing images against fixed low and fixed high ones, in about the same time.

    A step costs about as (side / 64)^2: the lengths below differ so that the seconds do not.
    """
    low, middle, high = 64, 80, 96
    cost = {side: (side / low) ** 2 for side in (low, middle, high)}
    unit = steps / 4
    stages = [(low, 2 * unit), (middle, unit / cost[middle]), (high, unit / cost[high])]
    growing = ",".join(f"{side}x{round(count)}s" for side, count in stages)
    plain = LARGER_PATCHES | {"image_size": None}
    yield Run(f"fixed {low}", "", plain | {"stages": f"{low}x{steps}s"})
    yield Run(f"FastMIM-P {low}/{middle}/{high}", "", plain | {"stages": growing})
    yield Run(f"fixed {high}", "", plain | {"stages": f"{high}x{round(steps / cost[high])}s"})


def batchnorm(steps: int) -> Iterator[Run]:
    """Statistics of batch norms as pre-training leaves them, and estimated anew on unmasked images."""
    yield Run("as pre-training leaves them", "", RESNET | {"steps": steps})
    yield Run("estimated anew", "", RESNET | {"steps": steps, "bn_recalibrate": True})


def bands(steps: int) -> Iterator[Run]:
    """13 channels, as 16-bit TIFF: RGB at four scales of blur, and grey."""
    yield Run("RGB photos", "3 channels", VIT | {"steps": steps})
    yield Run("16-bit TIFF", "13 channels", VIT | {"steps": steps, "in_chans": 13, "data": "bands"})


def initial(steps: int) -> Iterator[Run]:
    """First weights: timm's, or linear layers by xavier_uniform as the released codes of MIM draw them."""
    for init in ("timm", "xavier"):
        yield Run(init, "", VIT | {"steps": steps, "encoder": {"init": init}})


def write_bands(photos: Path, out: Path, count: int) -> None:
    """``count`` photos as (13, H, W) uint16 TIFFs."""
    out.mkdir(parents=True)
    for number, file in enumerate(sorted(photos.rglob("*.jpg"))[:count]):
        photo = cv2.imread(str(file)).astype(np.float32)
        blurred = [photo, *(cv2.GaussianBlur(photo, (0, 0), sigma) for sigma in (1, 2, 4))]
        stack = np.concatenate([*blurred, photo.mean(2, keepdims=True)], axis=2) * 257
        tifffile.imwrite(out / f"{number:05d}.tif", stack.transpose(2, 0, 1).round().astype(np.uint16))


STUDIES = {study.__name__: study for study in (mask, depth, decoder, progressive, batchnorm, bands, initial)}
STEPS = {"mask": 250, "progressive": 300, "initial": 600} | dict.fromkeys(
    ("depth", "decoder", "batchnorm", "bands"), 150
)
MEASURED_AT = {"progressive": 96}  # pixels of the loss, where runs differ in them
PROBED = {"batchnorm": 64}  # pixels at which the features of the same weights are compared
TUNED = {"initial"}  # fine-tuned on 1 % of the labels of a folder of classes, measured on a tenth of the same


def do(job: tuple[str, Run, int, argparse.Namespace]) -> dict[str, Any]:
    """One run of one seed; its numbers."""
    study, run, seed, arguments = job
    torch.set_num_threads(1)
    name = "-".join(filter(None, (run.row, run.column, f"seed{seed}")))
    out = Path(arguments.out) / study / re.sub(r"[ /,]+", "_", name)
    result = out / "result.json"
    if not result.exists():
        settings = {key: value for key, value in (COMMON | run.settings).items() if value is not None}
        data = Path(arguments.out) / "bands" / "data" if settings.pop("data", "") else arguments.data
        fastmim.pretrain(data=data, out=out, seed=seed, quiet=True, resume="or-begin", **settings)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        last = lines[-1]
        numbers = {"loss": last["held_out_loss"] / last["trivial_loss"], "seconds": last["seconds"]}
        if study in MEASURED_AT:
            numbers["loss"] = loss_at(out, MEASURED_AT[study])
        if study in PROBED:
            numbers["knn"] = nearest_neighbours(out, PROBED[study], Path(arguments.probe))
        if study in TUNED:
            numbers["top1"] = fine_tuned(out, seed, Path(arguments.probe) / "train")
        result.write_text(json.dumps(numbers))
    return json.loads(result.read_text())


def loss_at(run: Path, side: int) -> float:
    """Held-out loss as a share of the constant baseline's, at a size that the run need not have had."""
    config = build(PretrainConfig, read_yaml(run / "config.yaml"))
    method = build_method(config)
    for stage in config.planned_stages[1:]:
        method.set_image_size(stage.size)
    method.load_state_dict(load_checkpoint(run / "last.ckpt").module)
    method.set_image_size((side, side))
    source = open_images(config.data)
    split = split_images(len(source), config.held_out, config.seed)
    crops = CropDataset(source, split.held_out, config.crop, (side, side), config.in_chans)
    images = to_images(held_out_crops(crops, config.held_out, config.seed, None), MEAN, STD)
    mask = method.draw_mask(torch.Generator().manual_seed(0), len(images), (side, side))
    held_out = HeldOut(method, images, mask, 64, contextlib.nullcontext)
    return held_out.loss() / held_out.baseline


def fine_tuned(run: Path, seed: int, labelled: Path) -> float:
    """Accuracy on a tenth of the images after fine-tuning on 1 % of the labels of the others."""
    settings = read_yaml(Path(__file__).with_name("cifar_finetune.yaml"))
    settings |= {"data": labelled, "val_share": 0.1, "labels": "0.01", "epochs": 60.0, "seed": seed}
    settings |= {"precision": "32-true", "kernels": {"threads": 1}}
    tuned = fastmim.finetune(encoder=run, out=run / "tuned", quiet=True, resume="or-begin", **settings)
    return tuned.top1 / 100


def nearest_neighbours(run: Path, side: int, labelled: Path, neighbours: int = 20) -> float:
    """Accuracy of 20 nearest neighbours (cosine) of mean-pooled features: 5,000 labelled, 2,000 asked."""
    model = fastmim.load_encoder(run, image_size=side).eval()
    features, labels = {}, {}
    for part, count in (("train", 5000), ("test", 2000)):
        files = sorted((labelled / part).rglob("*.jpg"))
        chosen = np.random.default_rng(0).permutation(len(files))[:count]
        labels[part] = np.array([files[i].parent.name for i in chosen])
        pooled = []
        for start in range(0, count, 100):
            pixels = [
                crop_and_resize(files[i].read_bytes(), lambda h, w: Box(0, 0, h, w), (side, side), 3)
                for i in chosen[start : start + 100]
            ]
            images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
            images = (images - MEAN.view(-1, 1, 1)) / STD.view(-1, 1, 1)
            with torch.no_grad():
                output = model.forward_features(images)
            pooled.append(output.flatten(2).mean(2) if output.ndim == 4 else output[:, 1:].mean(1))
        features[part] = torch.cat(pooled)
    mean, std = features["train"].mean(0), features["train"].std(0) + 1e-6
    train, test = (F.normalize((features[part] - mean) / std, dim=1) for part in ("train", "test"))
    nearest = (test @ train.T).topk(neighbours).indices.numpy()
    votes = labels["train"][nearest]
    guessed = [max(set(row), key=list(row).count) for row in votes.tolist()]
    return float(np.mean(np.array(guessed) == labels["test"]))


def interval(values: list[float]) -> str:
    """Mean and half-width of the 95 % interval, in per cent."""
    mean = 100 * statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.1f}"
    t = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}[len(values)]
    return f"{mean:.1f} ± {100 * t * statistics.stdev(values) / math.sqrt(len(values)):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", choices=STUDIES, nargs="+")
    parser.add_argument("--data", required=True, help="unlabelled images")
    parser.add_argument("--probe", help="folder with train/CLASS and test/CLASS, for scores")
    parser.add_argument("--out", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    for study in arguments.study:
        runs = list(STUDIES[study](STEPS[study]))
        jobs = [(study, run, seed, arguments) for seed in range(arguments.seeds) for run in runs]
        if study == "bands" and not (made := Path(arguments.out) / "bands" / "data").exists():
            write_bands(Path(arguments.data), made, 10000)
        began = time.monotonic()
        with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
            numbers = pool.map(do, jobs, chunksize=1)
        print(f"\n{STUDIES[study].__doc__.strip().splitlines()[0]} ({arguments.seeds} seeds)\n")
        score = "knn" if study in PROBED else "top1" if study in TUNED else None
        name = {"knn": " kNN, % |", "top1": " fine-tuned top-1, % |", None: ""}[score]
        print("| | | loss, % of trivial | seconds |" + name)
        print("|---|---|---:|---:|" + ("---:|" if score else ""))
        for run in runs:
            mine = [n for job, n in zip(jobs, numbers, strict=True) if job[1] == run]
            more = f" {interval([n[score] for n in mine])} |" if score else ""
            seconds = statistics.mean(n["seconds"] for n in mine)
            print(
                f"| {run.row} | {run.column} | {interval([n['loss'] for n in mine])} | {seconds:.0f} |{more}"
            )
        print(f"\n{time.monotonic() - began:.0f} s in all")


if __name__ == "__main__":
    main()
