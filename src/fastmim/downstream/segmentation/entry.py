"""Start a segmentation run from Python arguments or from a complete configuration."""

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from fastmim.config import SegmentConfig, launch, merge, run_settings
from fastmim.config.usage import check_transfer
from fastmim.data.annotations.mask_pairs import MaskedImages, MaskFormat, open_masks
from fastmim.downstream.backbone import PyramidBackbone, check_out, load_backbone, with_factory
from fastmim.downstream.segmentation.task import SegmentationTask, SegmentResult, resolve
from fastmim.encoders.build import name_of
from fastmim.encoders.trust import Trust
from fastmim.recipes import base_config
from fastmim.train.distributed import starts_processes, teller
from fastmim.train.run import train
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
    """Train UperNet on a backbone for semantic segmentation (paper: table 6, appendix A.3.4).

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
    module = model if isinstance(model, nn.Module) else None
    name = (name_of(model) if encoder == "none" else None) if isinstance(model, nn.Module) else model
    named = {"encoder": encoder, "data": data, "out": out, "model": name}
    given = {name: os.fspath(value) for name, value in named.items() if value is not None} | settings
    resumed = given.get("out") if resume else None
    base = base_config(SegmentConfig, config, recipe, resumed, given=given, trust_code=trust_code)
    return run_segmentation(merge(base, given), StartMode(resume, overwrite, quiet), module, trust_code)


def run_segmentation(
    config: SegmentConfig,
    start: StartMode = NEW_RUN,
    module: nn.Module | None = None,
    trust_code: bool = False,
) -> SegmentResult:
    """Run a configuration, on one device in this process or on several devices in new processes.

    Args:
        config: the model that it names is imported; a caller that reads it from a file checks it first.
        module: the model itself, if ``config.model`` is not a name that it can be built from.
        trust_code: also import the factory that the encoder's file names.
    """
    resumes = check_transfer(config, start)
    if trust_code and module is None:
        config = with_factory(config, Trust(everything=True))
    config = replace(config, out=str(Path(config.out).expanduser()))
    say = teller(start.quiet)
    say(f"{config.data}: looking for images and masks")
    form = MaskFormat(config.classes, config.palette, config.zero_is_unlabelled, config.ignore_index)
    training, validation = open_masks(config.data, form, config.val_share, config.split_seed)
    check_out(config)
    backbone = build(config, module)
    with torch.random.fork_rng(devices=[]):
        config = resolve(config, backbone, training, say)
    worker = partial(
        run_on,
        training=training,
        validation=validation,
        config=config,
        start=start,
        module=module,
        backbone=None if starts_processes(config.devices, config.num_nodes) else backbone,
    )
    return launch(config, resumes, worker)


def build(config: SegmentConfig, module: nn.Module | None) -> PyramidBackbone:
    """Build the backbone that ``config`` describes; newly initialised weights depend on the seed."""
    torch.manual_seed(config.seed)
    return load_backbone(config, module)


def run_on(
    fabric: Fabric,
    training: MaskedImages,
    validation: MaskedImages,
    config: SegmentConfig,
    start: StartMode,
    module: nn.Module | None,
    backbone: PyramidBackbone | None,
) -> SegmentResult:
    """Train on the devices of ``fabric``; every process of a run calls this function."""
    if backbone is None:
        backbone = build(config, module)
    torch.manual_seed(config.seed)  # for the head
    task = SegmentationTask(fabric, training, validation, config, backbone)
    return task.result(train(task, fabric, run_settings(config, start, config.kernels)))
