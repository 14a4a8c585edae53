"""Classify the features of a frozen backbone: nearest neighbours, a linear classifier, or attentive pooling.

Masked image modelling scores low under these and still fine-tunes well (He et al. 2021, section 4.3): probes
compare features, and are no basis for choosing a backbone.
"""

import math
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from timm.layers.attention_pool import AttentionPoolLatent
from torch import Tensor, nn

from fastmim.config import build
from fastmim.data.labelled import Labelled, few_labels, open_labelled, split_classes
from fastmim.data.loading.dataset import UnreadableRecord
from fastmim.data.seeds import PROBE_SEED, seeded_generator
from fastmim.downstream.accuracy import Accuracy, count_hits
from fastmim.downstream.frozen.features import Extractor, build_extractor
from fastmim.downstream.frozen.settings import ProbeConfig, check_probe
from fastmim.errors import RunError

DECAYS = tuple(
    10.0**power for power in range(-5, 2)
)  # strengths of L2 regularisation that a linear probe tries
LINEAR_STEPS = 100
CHOOSING_SHARE = 0.2  # of the training images, held out to choose the strength
VOTES = 1024  # validation images that are classified at a time


class ProbeResult(NamedTuple):
    """Result of a probe."""

    accuracy: Accuracy
    classes: tuple[str, ...]
    training_images: int
    note: str
    """Hyperparameter of the probe: neighbours, strength of L2, or epochs."""
    data_notes: tuple[str, ...] = ()
    """Messages about the images for the user."""
    unreadable: tuple[UnreadableRecord, ...] = ()
    """Unreadable images of both splits, which are left out."""

    def __repr__(self) -> str:
        return (
            f"ProbeResult(top1={self.accuracy.top1:.2f}, top5={self.accuracy.top5:.2f}, "
            f"images={int(self.accuracy.images.sum())}, training_images={self.training_images}, "
            f"classes={len(self.classes)}, unreadable={len(self.unreadable)}, note={self.note!r})"
        )


Scorer = Callable[[Tensor], Tensor]  # features -> scores (B, classes)


def probe(
    *,
    encoder: str | os.PathLike[str],
    data: str | os.PathLike[str],
    model: nn.Module | str | None = None,
    trust_code: bool = False,
    **settings: Any,
) -> ProbeResult:
    """Probe a frozen backbone: `run_probe` with settings by name.

    Args:
        encoder: a run's folder, its encoder.safetensors, or ``timm:NAME``.
        data: images with classes, as for `fastmim.finetune`.
        model: the module, if the run pre-trained a module, or the factory that the file names.
        trust_code: import and call any factory that the file names.
        settings: any field of `ProbeConfig`, such as ``kind="knn"``.
    """
    given = {"encoder": os.fspath(encoder), "data": os.fspath(data), **settings}
    module = model if isinstance(model, nn.Module) else None
    config = build(ProbeConfig, given | ({"model": model} if module is None else {}))
    return run_probe(config, module, trust_code)


def run_probe(config: ProbeConfig, module: nn.Module | None = None, trust_code: bool = False) -> ProbeResult:
    """Probe a frozen backbone.

    Args:
        module: the module, if the run pre-trained a module.
        trust_code: import and call any factory that the encoder's file names.

    Raises:
        UsageError: a setting, path or model is invalid.
        RunError: too many images cannot be read.
    """
    check_probe(config)
    extractor = build_extractor(
        config.encoder,
        config.image_size,
        config.accelerator,
        workers=config.workers,
        max_pixels=config.max_pixels,
        model=config.model if module is None else module,
        trust_code=trust_code,
    )
    training, validation = open_labelled(config.data, config.val_share, config.split_seed, config.columns)
    training = few_labels(training, config.labels, config.seed)
    pooled = config.kind != "attentive"
    with tempfile.TemporaryDirectory(prefix="fastmim-") as folder:
        known = _all_features(extractor, training, pooled, Path(folder) / "training", config)
        asked = _all_features(extractor, validation, pooled, Path(folder) / "validation", config)
        classes = len(training.classes)
        device = extractor.fabric.device
        if config.kind == "knn":
            scorer, note = _neighbours(known, classes, config, device)
        elif config.kind == "linear":
            scorer, note = _linear(known, training, classes, config, device)
        else:
            scorer, note = _attentive(known, classes, config, device)
        scores = [
            scorer(torch.from_numpy(np.asarray(asked.values[start : start + VOTES])).float().to(device)).cpu()
            for start in range(0, len(asked.labels), VOTES)
        ]
        accuracy = count_hits(torch.cat(scores), asked.labels, classes)
    left_out = (*known.unreadable, *asked.unreadable)
    return ProbeResult(accuracy, training.classes, len(known.labels), note, training.notes, left_out)


class _Known(NamedTuple):
    """Features and classes of the images that could be read."""

    values: NDArray[np.float32] | NDArray[np.float16]
    """(N, D) or (N, D, h, w); maps are stored on disk."""
    labels: NDArray[np.int64]
    unreadable: list[UnreadableRecord]


def _all_features(
    extractor: Extractor, data: Labelled, pooled: bool, file: Path, config: ProbeConfig
) -> _Known:
    by_index = data.by_index()
    labels: list[NDArray[np.int64]] = []
    store: NDArray[np.float32] | NDArray[np.float16] | None = None
    filled = 0
    broken: list[UnreadableRecord] = []
    for values, indices, unreadable in extractor.features(data.source, data.indices, pooled):
        broken += unreadable
        if store is None and len(values):
            shape = (len(data), *values.shape[1:])
            needed, free = 2 * math.prod(shape), shutil.disk_usage(file.parent).free
            if not pooled and needed > free:
                raise RunError(
                    f"the feature maps need {needed / 1e9:.1f} GB, {file.parent} has {free / 1e9:.1f} free: "
                    "set TMPDIR to a larger disk, or take fewer --labels"
                )
            store = (
                np.empty(shape, np.float32)
                if pooled
                else np.lib.format.open_memmap(file, "w+", np.float16, shape)
            )
        if store is not None:
            store[filled : filled + len(values)] = values.numpy()
        filled += len(values)
        labels.append(by_index[indices])
    if store is None or len(broken) > config.max_unreadable * len(data):
        raise RunError(
            f"{len(broken)} of {len(data)} images cannot be read, more than max_unreadable = "
            f"{config.max_unreadable:g} allows; the first is {broken[0].name}: {broken[0].reason}"
        )
    return _Known(store[:filled], np.concatenate(labels), broken)


def _neighbours(known: _Known, classes: int, config: ProbeConfig, device: torch.device) -> tuple[Scorer, str]:
    """Classify by the k nearest in cosine, weighted as by Wu et al. 2018 and Caron et al. 2021."""
    bank = F.normalize(torch.from_numpy(known.values).float().to(device), dim=1)
    labels = torch.from_numpy(known.labels).to(device)
    count = min(config.neighbours, len(bank))

    def score(features_BD: Tensor) -> Tensor:
        cosine, nearest = (F.normalize(features_BD, dim=1) @ bank.T).topk(count, dim=1)
        weights = ((cosine - 1) / config.temperature).exp()
        scores = torch.zeros(len(weights), classes, device=device)
        return scores.scatter_add_(1, labels[nearest], weights)

    return score, f"{count} neighbours"


def _linear(
    known: _Known, training: Labelled, classes: int, config: ProbeConfig, device: torch.device
) -> tuple[Scorer, str]:
    """Fit logistic regression on standardised features; its L2 is chosen on a part of the training images."""
    values = torch.from_numpy(known.values).to(device)
    mean, std = values.mean(0), values.std(0, correction=0).clamp(min=1e-6)
    scaled = (values - mean) / std
    labels = torch.from_numpy(known.labels).to(device)
    strength = DECAYS[len(DECAYS) // 2]
    if np.bincount(known.labels, minlength=classes).min() >= 2:
        positions = Labelled(training.source, np.arange(len(labels)), known.labels, training.classes)
        fit, choose = (
            torch.from_numpy(part.indices).to(device)
            for part in split_classes(positions, CHOOSING_SHARE, config.seed, "the training images")
        )
        right = {}
        for decay in DECAYS:
            trial = _logistic(scaled[fit], labels[fit], classes, decay)
            right[decay] = float((trial(scaled[choose]).argmax(1) == labels[choose]).float().mean())
        strength = max(right, key=lambda decay: (right[decay], decay))
    best = _logistic(scaled, labels, classes, strength)
    return lambda features_BD: best((features_BD - mean) / std), f"L2 of {strength:g}"


def _logistic(values_ND: Tensor, labels_N: Tensor, classes: int, decay: float) -> nn.Linear:
    layer = nn.Linear(values_ND.shape[1], classes).to(values_ND.device)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(
        layer.parameters(), max_iter=LINEAR_STEPS, history_size=10, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(layer(values_ND), labels_N) + decay / 2 * layer.weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return layer.requires_grad_(False)


class _AttentiveHead(nn.Module):
    """One learned query attends to the map; layer norm; linear."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        heads = next(count for count in (12, 8, 6, 4, 3, 2, 1) if width % count == 0)
        self.pool = AttentionPoolLatent(width, num_heads=heads, mlp_ratio=1, norm_layer=nn.LayerNorm)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, maps_BDhw: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.pool(maps_BDhw.flatten(2).transpose(1, 2))))
        return logits


def _attentive(known: _Known, classes: int, config: ProbeConfig, device: torch.device) -> tuple[Scorer, str]:
    generator = seeded_generator(PROBE_SEED, config.seed)
    torch.manual_seed(config.seed)
    head = _AttentiveHead(known.values.shape[1], classes).to(device)
    batch = min(256, len(known.labels))
    steps = config.epochs * -(-len(known.labels) // batch)
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.base_lr * batch / 256, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    labels = torch.from_numpy(known.labels)
    for _ in range(config.epochs):
        for rows in torch.randperm(len(labels), generator=generator).split(batch):  # type: ignore[no-untyped-call]
            maps = torch.from_numpy(known.values[rows.numpy()]).float().to(device)
            loss = F.cross_entropy(head(maps), labels[rows].to(device), label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    head.eval().requires_grad_(False)
    return head, f"{config.epochs} epochs"
