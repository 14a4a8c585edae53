"""Write the outputs of detection: results.json, detections, the model, and pictures."""

import contextlib
import io
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from torch import nn

from fastmim._version import __version__
from fastmim.config import DetectConfig
from fastmim.data.annotations.instances import Annotated, InstanceImages, Segmentation, draw_mask
from fastmim.data.decode.pixels import UnreadableImage
from fastmim.data.loading.dense import EvalDense, EvalSamples
from fastmim.data.transforms.placement import whole
from fastmim.downstream.backbone import PyramidBackbone, attention_settings, write_backbone
from fastmim.downstream.detection.prediction import DetectionPredictor
from fastmim.downstream.detection.scores import RECALLS, DetectionScores
from fastmim.report.masks import class_colours, displayed
from fastmim.report.objects import Detections, draw_objects, kept
from fastmim.system.files import write_atomically
from fastmim.system.size import Size
from fastmim.weights.model_file import describe_model, save_model

RESULTS = "results.json"
DETECTIONS = "detections.json"
PICTURES = "validation.png"
CURVE = "precision_recall.png"
SHOWN = 8  # images in the picture, the worst ones first
SHOWN_SCORE = 0.5  # least score of a detection in the picture
LEGEND = 24  # classes named in the picture


def write_results(run: Path, scores: DetectionScores, facts: dict[str, Any]) -> None:
    """Write results.json, and the detections as COCO's results JSON."""
    results = {
        "box": _plain(scores.box),
        "mask": _plain(scores.mask) if scores.mask is not None else None,
        "images": scores.images,
        "unreadable": scores.unreadable,
        **facts,
        "fastmim_version": __version__,
        "per_class": scores.per_class,
    }
    content = json.dumps(results, indent=2).encode() + b"\n"
    write_atomically(run / RESULTS, lambda file: file.write(content))
    found = json.dumps(scores.results).encode() + b"\n"
    write_atomically(run / DETECTIONS, lambda file: file.write(found))


def _plain(figures: dict[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in figures.items()}


def write_detector(
    run: Path,
    backbone: PyramidBackbone,
    model: nn.Module,
    classes: tuple[str, ...],
    config: DetectConfig,
    masks: bool,
) -> None:
    """Write the whole model as model.safetensors, and its backbone as encoder.safetensors."""
    settings = {"head": asdict(config.head), "masks": masks, **attention_settings(config)}
    mean, std = config.jitter.statistics
    save_model(
        run, model, describe_model("detect", backbone.encoder, config.size, mean, std, classes, settings)
    )
    write_backbone(run, backbone, model, mean, std)


def draw_curve(run: Path, scores: DetectionScores) -> None:
    """Draw the precision at each recall, for an IoU of 0.5, mean over the classes."""
    figure = Figure(figsize=(4.2, 3.2), dpi=100, layout="constrained")
    axes = figure.subplots()
    figures = {"box": scores.box, "mask": scores.mask or {}}
    for kind, precision in scores.precision.items():
        if precision:
            axes.plot(RECALLS, precision, label=f"{kind}: AP50 {figures[kind]['AP50']:.1f} %")
    axes.set(
        xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), title="IoU 0.5, mean over classes"
    )
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomically(run / CURVE, lambda file: file.write(buffer.getvalue()))


def draw_worst(
    run: Path,
    predictor: DetectionPredictor,
    samples: EvalSamples,
    data: InstanceImages,
    scores: DetectionScores,
) -> None:
    """Write validation.png: true and detected objects of the images with the lowest F1 score."""
    worst = sorted(scores.image_ap, key=scores.image_ap.__getitem__)[:SHOWN]
    if not worst:
        return
    figure = Figure(figsize=(7.5, 2.9 * len(worst) + 1.0), dpi=100, layout="constrained")
    axes = figure.subplots(len(worst), 2, squeeze=False)
    colours = class_colours(len(data.classes))
    seen: set[int] = set()
    for row, index in enumerate(worst):
        (image,) = EvalDense(samples)[np.array([index])].images
        (found,) = predictor([image])
        pixels = displayed(image.pixels_HWC[0].numpy())
        true = as_detections(data.objects[index], image.original, scores.mask is not None)
        shown = found.scores >= SHOWN_SCORE
        seen |= set(true.labels.tolist()) | set(found.labels[shown].tolist())
        draw_objects(axes[row][0], pixels, true, image.original, colours)
        draw_objects(axes[row][1], pixels, kept(found, shown), image.original, colours)
        name = data.source.name(index)
        axes[row][0].set_title(name if len(name) < 50 else f"...{name[-47:]}", fontsize=7)
        axes[row][1].set_title(f"detections: F1 {100 * scores.image_ap[index]:.0f} %", fontsize=7)
    entries = [Patch(color=colours[k] / 255, label=data.classes[k]) for k in sorted(seen)[:LEGEND]]
    if entries:
        figure.legend(handles=entries, loc="outside lower center", ncols=6, fontsize=7, frameon=False)
    figure.suptitle(
        f"Worst validation images, of {scores.images}: box AP {scores.box['AP']:.1f} % over all", fontsize=9
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomically(run / PICTURES, lambda file: file.write(buffer.getvalue()))


def as_detections(objects: Annotated, size: Size, masks: bool) -> Detections:
    """Return true objects as if they were detected."""
    drawn = [_drawn(part, size) for part in objects.segmentations] if masks else []
    return Detections(
        objects.boxes,
        np.ones(len(objects.boxes), np.float32),
        objects.labels,
        np.array(drawn, bool).reshape(-1, *size) if masks else None,
    )


def _drawn(segmentation: Segmentation | None, size: Size) -> NDArray[np.bool_]:
    """Draw a mask; an object without a mask, or with one of another size, has an empty one."""
    if segmentation is not None:
        with contextlib.suppress(UnreadableImage):
            return draw_mask(segmentation, size, size, whole(size, 1.0)).astype(bool)
    return np.zeros(size, bool)
