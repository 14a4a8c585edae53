"""Start a detection run from Python arguments or from a complete configuration."""

import os
from typing import Any

from torch import nn

from fastmim.config import DetectConfig
from fastmim.data.annotations.find_instances import open_instances
from fastmim.data.annotations.instances import InstanceImages
from fastmim.downstream.dense_entry import Kind, configured, run_dense
from fastmim.downstream.detection.task import DetectionTask, DetectResult, resolve
from fastmim.train.settings import NEW_RUN, Resume, StartMode


def detect(  # noqa: PLR0913 - public
    *,
    encoder: str | os.PathLike[str] | None = None,
    data: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    model: str | nn.Module | None = None,
    config: str | os.PathLike[str] | None = None,
    recipe: str | None = None,
    resume: Resume = False,
    overwrite: bool = False,
    quiet: bool = False,
    trust_code: bool = False,
    **settings: Any,
) -> DetectResult:
    """Train Mask R-CNN, or Faster R-CNN, on a backbone (paper: table 5, table 13).

    Args:
        encoder: a run's folder, its encoder.safetensors, ``timm:NAME`` or ``none``.
        data: images with boxes, see `fastmim.data.annotations.find_instances.open_instances`.
        out: output folder of the run.
        model, config, recipe, resume, overwrite, quiet, trust_code: as for `fastmim.finetune`.
        settings: any field of `fastmim.config.DetectConfig`; groups as mappings or dotted.

    Returns:
        Folder and scores of the run.

    Raises:
        UsageError: a setting, path or model is invalid; nothing was started.
        RunError: the run failed; its last checkpoint is intact.
    """
    places = {"encoder": encoder, "data": data, "out": out}
    complete = configured(DetectConfig, places, model, settings, config, recipe, resume, trust_code)
    module = model if isinstance(model, nn.Module) else None
    return run_detection(complete, StartMode(resume, overwrite, quiet), module, trust_code)


def run_detection(
    config: DetectConfig,
    start: StartMode = NEW_RUN,
    module: nn.Module | None = None,
    trust_code: bool = False,
) -> DetectResult:
    """Run a configuration; see `dense_entry.run_dense`."""
    result: DetectResult = run_dense(config, start, module, trust_code, KIND)
    return result


def open_data(config: DetectConfig) -> tuple[InstanceImages, InstanceImages]:
    """Open the training and validation images."""
    return open_instances(config.data, config.annotations, config.images, config.val_share, config.split_seed)


KIND = Kind(open_data, resolve, DetectionTask)
