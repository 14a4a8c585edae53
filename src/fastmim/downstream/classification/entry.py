"""Start a fine-tuning run from Python arguments or from a complete configuration."""

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from fastmim.config import FinetuneConfig, launch, merge, run_settings
from fastmim.config.usage import check_transfer
from fastmim.data.labelled import Labelled, few_labels, open_labelled
from fastmim.downstream.backbone import with_factory
from fastmim.downstream.classification.start import InitialModel, build_classifier
from fastmim.downstream.classification.task import ClassificationTask, FinetuneResult, resolve
from fastmim.encoders.build import name_of
from fastmim.encoders.trust import Trust
from fastmim.recipes import base_config
from fastmim.train.distributed import starts_processes, teller
from fastmim.train.run import train
from fastmim.train.settings import NEW_RUN, Resume, StartMode


def finetune(  # noqa: PLR0913 - public
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
) -> FinetuneResult:
    """Fine-tune a backbone for classification (paper: appendix A.3.2, table 12).

    Args:
        encoder: a run's folder, its encoder.safetensors, ``timm:NAME`` or ``none``.
        data: images with classes, see `fastmim.data.labelled.open_labelled`.
        out: output folder of the run.
        model: with ``encoder="none"``, the backbone's name; or a module into which the encoder's weights are
            loaded; or the factory that the encoder's file names.
        config, recipe, resume, overwrite, quiet: as for `fastmim.pretrain`.
        trust_code: import and call any factory that a file names: the encoder's file, ``config``, or the
            configuration of the resumed run.
        settings: any field of `fastmim.config.FinetuneConfig`; groups as mappings or dotted.

    Returns:
        Folder and accuracy of the run.

    Raises:
        UsageError: a setting, path or model is invalid; nothing was started.
        RunError: the run failed; its last checkpoint is intact.
    """
    module = model if isinstance(model, nn.Module) else None
    scratch = encoder == "none"
    name = (name_of(model) if scratch else None) if isinstance(model, nn.Module) else model
    named = {"encoder": encoder, "data": data, "out": out, "model": name}
    given = {name: os.fspath(value) for name, value in named.items() if value is not None} | settings
    resumed = given.get("out") if resume else None
    base = base_config(FinetuneConfig, config, recipe, resumed, given=given, trust_code=trust_code)
    return run_finetuning(merge(base, given), StartMode(resume, overwrite, quiet), module, trust_code)


def run_finetuning(
    config: FinetuneConfig,
    start: StartMode = NEW_RUN,
    module: nn.Module | None = None,
    trust_code: bool = False,
) -> FinetuneResult:
    """Run a configuration, on one device in this process or on several devices in new processes.

    Args:
        config: the model that it names is imported; a caller that reads it from a file checks it first.
        module: the model itself, if ``config.model`` is not a name that it can be built from.
        trust_code: also import the factory that the encoder's file names.
    """
    resumes = check_transfer(config, start)
    run = Path(config.out).expanduser()
    if trust_code and module is None:
        config = with_factory(config, Trust(everything=True))
    config = replace(config, out=str(run))
    say = teller(start.quiet)
    say(f"{config.data}: looking for images")
    training, validation = open_labelled(
        config.data, config.val_share, config.split_seed, config.columns, config.out
    )
    training = few_labels(training, config.labels, config.seed)
    classifier = build(config, len(training.classes), module)
    with torch.random.fork_rng(devices=[]):
        config = resolve(config, classifier, training, say)
    worker = partial(
        run_on,
        training=training,
        validation=validation,
        config=config,
        start=start,
        module=module,
        classifier=None if starts_processes(config.devices, config.num_nodes) else classifier,
    )
    return launch(config, resumes, worker)


def build(config: FinetuneConfig, classes: int, module: nn.Module | None) -> InitialModel:
    """Build the classifier that ``config`` describes; newly initialised weights depend on the seed."""
    torch.manual_seed(config.seed)
    return build_classifier(config, classes, module)


def run_on(
    fabric: Fabric,
    training: Labelled,
    validation: Labelled,
    config: FinetuneConfig,
    start: StartMode,
    module: nn.Module | None,
    classifier: InitialModel | None,
) -> FinetuneResult:
    """Fine-tune on the devices of ``fabric``; every process of a run calls this function."""
    if classifier is None:
        classifier = build(config, len(training.classes), module)
    task = ClassificationTask(fabric, training, validation, config, classifier)
    return task.result(train(task, fabric, run_settings(config, start, config.kernels)))
