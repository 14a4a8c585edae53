"""The ways into fine-tuning for classification: from Python, and from a finished configuration."""

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from fastmim.config import FinetuneConfig, merge
from fastmim.data.labels import few_labels, open_labelled
from fastmim.encoders.build import name_of
from fastmim.errors import UsageError
from fastmim.recipes import base_config
from fastmim.train.launch import run_everywhere
from fastmim.train.resuming import newest_checkpoint
from fastmim.train.rundir import Resume, goes_on
from fastmim.transfer.classify_run import FinetuneResult, run_on


def finetune(
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
    **settings: Any,
) -> FinetuneResult:
    """Fine-tune a backbone for classification (paper: section 4.1, table 12).

    Args:
        encoder: a run's folder, its encoder.safetensors, ``timm:NAME`` or ``none``.
        data: images with classes, see `fastmim.data.labels.open_labelled`.
        out: folder that the run is written to.
        model: with ``encoder="none"``, the backbone's name; or a module of your own, into which the
            encoder's weights are loaded.
        config, recipe, resume, overwrite, quiet: as for `fastmim.pretrain`.
        settings: any field of `fastmim.config.FinetuneConfig`; groups as mappings or dotted.

    Returns:
        The accuracy, and where the run lies.

    Raises:
        UsageError: a setting, path or model that does not work; nothing was started.
        RunError: the run had to end; its last checkpoint is intact.
    """
    module = model if isinstance(model, nn.Module) else None
    scratch = encoder == "none"
    name = (name_of(model) if scratch else None) if isinstance(model, nn.Module) else model
    named = {"encoder": encoder, "data": data, "out": out, "model": name}
    given = {name: os.fspath(value) for name, value in named.items() if value is not None} | settings
    base = base_config(FinetuneConfig, config, recipe, given.get("out") if resume else None)
    return run_finetuning(merge(base, given), resume, overwrite, quiet, module)


def run_finetuning(
    config: FinetuneConfig,
    resume: Resume = False,
    overwrite: bool = False,
    quiet: bool = False,
    module: nn.Module | None = None,
) -> FinetuneResult:
    """Run a configuration, on one device in this process or on several in processes of their own."""
    run = Path(config.out).expanduser()
    resumes = bool(config.out) and goes_on(run, resume)
    hints = {
        "encoder": "give a run's folder, an encoder.safetensors, timm:NAME or none",
        "data": "give a folder with train/ and val/, or demo:digits to try it",
        "out": "give a folder that the run is written to",
    }
    for setting, hint in hints.items():
        if not getattr(config, setting):
            raise UsageError(f"{setting} is missing: {hint}")
    if run.resolve() == Path(config.data).expanduser().resolve():
        raise UsageError(f"out: {run} is where the data lies; give another folder")
    config = replace(config, out=str(run))
    training, validation = open_labelled(config.data, config.val_share, config.split_seed)
    training = few_labels(training, config.labels, config.seed)
    checkpoint = newest_checkpoint(run) if resumes else None
    precision = checkpoint.state["choices"]["precision"] if checkpoint else config.precision
    start = partial(
        run_on,
        training=training,
        validation=validation,
        config=config,
        resume=resume,
        overwrite=overwrite,
        quiet=quiet,
        module=module,
    )
    return run_everywhere(config.accelerator, config.devices, config.num_nodes, precision, start)
