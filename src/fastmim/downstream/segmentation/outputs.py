"""Write the outputs of segmentation: results.json, the model, and pictures of the worst images."""

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import nn

from fastmim._version import __version__
from fastmim.config import SegmentConfig
from fastmim.data.annotations.masks import IGNORED
from fastmim.data.loading.dense import EvalDense
from fastmim.data.loading.mask_samples import WholeMasks
from fastmim.downstream.backbone import PyramidBackbone, attention_settings, write_backbone
from fastmim.downstream.segmentation.evaluation import Predictor, SegmentationScores
from fastmim.report.masks import class_colours, coloured, displayed
from fastmim.system.files import write_atomically
from fastmim.weights.model_file import describe_model, save_model

RESULTS = "results.json"
PICTURES = "validation.png"
SHOWN = 8  # images in the picture, the worst ones first
LEGEND = 24  # classes named in the picture


def write_results(
    run: Path, scores: SegmentationScores, classes: tuple[str, ...], facts: dict[str, Any]
) -> None:
    """Write results.json; ``facts`` holds the run's settings, length, speed and device."""
    true = scores.confusion.sum(1)
    results = {
        "miou": scores.miou,
        "pixel_accuracy": scores.pixel_accuracy,
        "mean_accuracy": scores.mean_accuracy,
        "images": scores.images,
        "unreadable": scores.unreadable,
        **facts,
        "fastmim_version": __version__,
        "per_class": {
            name: {"iou": None if np.isnan(iou) else iou, "pixels": pixels}
            for name, iou, pixels in zip(classes, scores.iou.tolist(), true.tolist(), strict=True)
        },
        "confusion": scores.confusion.tolist(),
    }
    content = json.dumps(results, indent=2).encode() + b"\n"
    write_atomically(run / RESULTS, lambda file: file.write(content))


def write_segmenter(
    run: Path, backbone: PyramidBackbone, model: nn.Module, classes: tuple[str, ...], config: SegmentConfig
) -> None:
    """Write the whole model as model.safetensors, and its backbone as encoder.safetensors."""
    settings = {
        "head": asdict(config.head),
        "evaluation": asdict(config.evaluation),
        "short_side": config.known_short_side,
        **attention_settings(config),
    }
    mean, std = config.jitter.statistics
    save_model(
        run, model, describe_model("segment", backbone.encoder, config.size, mean, std, classes, settings)
    )
    write_backbone(run, backbone, model, mean, std)


def draw_worst(
    run: Path, predictor: Predictor, samples: WholeMasks, scores: SegmentationScores, classes: tuple[str, ...]
) -> None:
    """Write validation.png: image, true and predicted masks of this process's images with the lowest IoU."""
    known = {index: iou for index, iou in scores.image_iou.items() if not np.isnan(iou)}
    worst = sorted(known, key=known.__getitem__)[:SHOWN]
    if not worst:
        return
    figure = Figure(figsize=(7.5, 1.9 * len(worst) + 1.2), dpi=100, layout="constrained")
    axes = figure.subplots(len(worst), 3, squeeze=False)
    colours = class_colours(len(classes))
    seen: set[int] = set()
    for row, index in enumerate(worst):
        (image,) = EvalDense(samples)[np.array([index])].images
        with torch.no_grad():
            predicted = predictor(image).argmax(0).cpu().numpy().astype(np.uint8)
        true = image.arrays["mask"]
        seen |= set(np.unique(true)) | set(np.unique(predicted))
        pictures = (
            displayed(image.pixels_HWC[0].numpy()),
            coloured(true, colours),
            coloured(predicted, colours),
        )
        titles = (samples.source.name(index), "truth", f"prediction: mIoU {known[index]:.1f} %")
        for axis, picture, title in zip(axes[row], pictures, titles, strict=True):
            axis.imshow(picture)
            axis.set_axis_off()
            axis.set_title(title if len(title) < 40 else f"...{title[-37:]}", fontsize=7)
    entries = [Patch(color=colours[k] / 255, label=classes[k]) for k in sorted(seen - {IGNORED})[:LEGEND]]
    figure.legend(handles=entries, loc="outside lower center", ncols=6, fontsize=7, frameon=False)
    figure.suptitle(
        f"Worst validation images, of {scores.images}: mIoU {scores.miou:.1f} % over all", fontsize=9
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomically(run / PICTURES, lambda file: file.write(buffer.getvalue()))
