"""Write the outputs of fine-tuning: results.json, and the classifier as encoder.safetensors."""

import json
from pathlib import Path
from typing import Any

from fastmim._version import __version__
from fastmim.data.settings import CropConfig
from fastmim.downstream.accuracy import Accuracy
from fastmim.downstream.averaged import AveragedModel
from fastmim.downstream.classification.model import PooledClassifier
from fastmim.downstream.classification.start import InitialModel
from fastmim.system.files import write_atomically
from fastmim.system.size import Size
from fastmim.weights.encoder_file import save_encoder

RESULTS = "results.json"


def write_results(
    run: Path,
    start: InitialModel,
    accuracy: Accuracy,
    classes: tuple[str, ...],
    facts: dict[str, Any],
) -> None:
    """Write results.json; ``facts`` holds the run's settings, length, speed and device."""
    results = {
        "top1": accuracy.top1,
        "top5": accuracy.top5,
        "mean_class_top1": accuracy.mean_class_top1,
        "images": int(accuracy.images.sum()),
        "unreadable": accuracy.unreadable,
        **facts,
        "encoder": start.metadata,
        "notes": start.notes,
        "fastmim_version": __version__,
        "per_class": accuracy.per_class(classes),
    }
    content = json.dumps(results, indent=2).encode() + b"\n"
    write_atomically(run / RESULTS, lambda file: file.write(content))


def write_classifier(
    run: Path,
    start: InitialModel,
    learner: AveragedModel,
    classes: tuple[str, ...],
    image_size: Size,
    crop: CropConfig,
) -> None:
    """Write the classifier as encoder.safetensors; a `PooledClassifier` is written without its classifier."""
    model = learner.best
    if isinstance(model, PooledClassifier):
        model = model.encoder.model
    mean, std = crop.statistics
    past = ("from", "model", "method", "target")
    metadata = {
        "model": start.name,
        "kwargs": start.kwargs,
        "image_size": list(image_size),
        "in_chans": start.in_chans,
        "mean": list(mean),
        "std": list(std),
        "method": "fine-tuned",
        "classes": list(classes),
        "fine_tuned_from": {key: start.metadata[key] for key in past if key in start.metadata},
        "fastmim_version": __version__,
    }
    save_encoder(run, model, metadata)
