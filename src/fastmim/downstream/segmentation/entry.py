"""Start a segmentation run from Python arguments or from a complete configuration."""

import os
from typing import Any

from torch import nn

from fastmim.config import SegmentConfig
from fastmim.data.annotations.mask_pairs import MaskedImages, MaskFormat, open_masks
from fastmim.downstream.dense_entry import Kind, configured, run_dense
from fastmim.downstream.segmentation.task import SegmentationTask, SegmentResult, resolve
from fastmim.train.settings import NEW_RUN, Resume, StartMode


def segment(  # noqa: PLR0913 - public
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
) -> SegmentResult:
    """Train UperNet on a backbone for semantic segmentation (paper: table 6, table 14).

    Args:
        encoder: a run's folder, its encoder.safetensors, ``timm:NAME`` or ``none``.
        data: images with masks, see `fastmim.data.annotations.mask_pairs.open_masks`.
        out: output folder of the run.
        model, config, recipe, resume, overwrite, quiet, trust_code: as for `fastmim.finetune`.
        settings: any field of `fastmim.config.SegmentConfig`; groups as mappings or dotted.

    Returns:
        Folder and scores of the run.

    Raises:
        UsageError: a setting, path or model is invalid; nothing was started.
        RunError: the run failed; its last checkpoint is intact.
    """
    places = {"encoder": encoder, "data": data, "out": out}
    complete = configured(SegmentConfig, places, model, settings, config, recipe, resume, trust_code)
    module = model if isinstance(model, nn.Module) else None
    return run_segmentation(complete, StartMode(resume, overwrite, quiet), module, trust_code)


def run_segmentation(
    config: SegmentConfig,
    start: StartMode = NEW_RUN,
    module: nn.Module | None = None,
    trust_code: bool = False,
) -> SegmentResult:
    """Run a configuration; see `dense_entry.run_dense`."""
    result: SegmentResult = run_dense(config, start, module, trust_code, KIND)
    return result


def open_data(config: SegmentConfig) -> tuple[MaskedImages, MaskedImages]:
    """Open the training and validation images."""
    form = MaskFormat(config.classes, config.palette, config.zero_is_unlabelled, config.ignore_index)
    return open_masks(config.data, form, config.val_share, config.split_seed)


KIND = Kind(open_data, resolve, SegmentationTask)
