"""Start a pre-training run from Python arguments or from a complete configuration."""

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from fastmim.config import PretrainConfig, launch, merge, run_settings
from fastmim.config.usage import check_pretraining
from fastmim.data.loading.channel_stats import channel_statistics
from fastmim.data.sources.base import ImageSource
from fastmim.data.sources.open import open_images
from fastmim.encoders.build import name_of
from fastmim.encoders.trust import Trust
from fastmim.errors import UsageError
from fastmim.pretraining.build import (
    Network,
    build_method,
    build_network,
    check_stages,
    check_teacher,
    kernel_config,
    resolve,
)
from fastmim.pretraining.initial import load_weights, settings_of_weights
from fastmim.pretraining.task import PretrainTask, RunResult
from fastmim.pretraining.teacher import with_factory
from fastmim.recipes import base_config
from fastmim.train.distributed import starts_processes, teller
from fastmim.train.run import train
from fastmim.train.settings import NEW_RUN, Resume, StartMode
from fastmim.weights.loaded import Loaded
from fastmim.weights.spec import parse_weights


def pretrain(
    *,
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
) -> RunResult:
    """Pre-train a backbone on a folder of unlabelled images.

    Args:
        data: folder, tar, parquet, saved dataset, ``hf:NAME[:SPLIT]`` or ``demo:NAME`` of images.
        out: output folder of the run.
        model: timm name of the backbone, ``package.module:factory``, or a module that maps images to a
            feature map (B, D, h, w), tokens (B, h*w, D), or a list that ends with one of these. On a single
            device, the module is trained in place; pass it again to resume, and to `load_encoder`.
        config: YAML file with settings; arguments of this function take precedence.
        recipe: name of a recipe to start from.
        resume: resume the run in ``out``; "or-begin": resume it if it exists, else start it.
        overwrite: replace the run in ``out``.
        quiet: print nothing.
        trust_code: import and call any factory that a file names: ``config``, the configuration of the
            resumed run, or the files of the teacher and of the weights. Otherwise only the factories passed
            to this function, as ``model`` and ``distill.model``, are called.
        settings: any field of `fastmim.config.PretrainConfig`; groups as mappings
            (``mask={"ratio": 0.6}``) or dotted (``**{"mask.ratio": 0.6}``). ``method`` selects the settings
            of the method's paper as defaults.

    Returns:
        Folder and results of the run. Several devices run in new processes, so a script must call this
        function below ``if __name__ == "__main__":``.

    Raises:
        UsageError: a setting, path or model is invalid; nothing was started.
        RunError: the run failed; its last checkpoint is intact.
    """
    # Collect the arguments that were given.
    module = model if isinstance(model, nn.Module) else None
    name = name_of(model) if isinstance(model, nn.Module) else model
    named = {"data": data, "out": out, "model": name}
    given = {name: os.fspath(value) for name, value in named.items() if value is not None} | settings
    # Merge the arguments over the stored run, recipe, file or defaults.
    resumed = given.get("out") if resume else None
    base = base_config(
        PretrainConfig, config, recipe, resumed, settings.get("method"), given, trust_code=trust_code
    )
    return run_pretraining(merge(base, given), StartMode(resume, overwrite, quiet), module, trust_code)


def run_pretraining(
    config: PretrainConfig,
    start: StartMode = NEW_RUN,
    module: nn.Module | None = None,
    trust_code: bool = False,
) -> RunResult:
    """Run a configuration, on one device in this process or on several devices in new processes.

    The images are found and the model is built and checked here, once, before anything is written.

    Args:
        config: the models that it names are imported; a caller that reads it from a file checks them first.
        module: the model itself, if ``config.model`` is not a name that it can be built from.
        trust_code: also import the factories that the files of the teacher and of the weights name.
    """
    # Check the settings and find the images.
    resumes = check_pretraining(config, start)
    run = Path(config.out).expanduser()
    config = replace(config, out=str(run))
    if trust_code:
        config = replace(config, distill=with_factory(config.distill))
    say = teller(start.quiet)
    say(f"{config.data}: looking for images")
    source = open_images(config.data, config.columns, config.out)
    initial = None
    if module is not None and parse_weights(config.weights).has_weights:
        raise UsageError(f"weights = {config.weights}: a module is trained as it is; load them into it")
    if not resumes:  # otherwise, the weights are in the checkpoint
        initial = load_weights(config, Trust.of(config.model, everything=trust_code))
    if initial is not None:
        config = settings_of_weights(config, initial)

    # Build the model, and check it at every stage's image size.
    if not resumes:
        say(f"{config.model}: checking every image size of the run")
    method = build_method(config, module, initial)
    if not resumes:
        check_stages(config, method)
    # Complete the configuration with channel statistics and with values from the model and its teacher.
    with torch.random.fork_rng(devices=[]):
        mean, std = channel_statistics(
            config.crop, source, config.in_chans, config.size, config.seed, config.max_pixels, say
        )
    config = replace(config, crop=replace(config.crop, mean=mean, std=std))
    network = build_network(config, method)
    if not resumes:
        check_teacher(config, network)
    config = resolve(config, network)

    # Start the processes.
    spawned = starts_processes(config.devices, config.num_nodes)  # each builds its own network
    worker = partial(
        run_on,
        source=source,
        config=config,
        start=start,
        module=module,
        network=None if spawned else network,
        initial=initial if spawned else None,
    )
    return launch(config, resumes, worker)


def run_on(
    fabric: Fabric,
    source: ImageSource,
    config: PretrainConfig,
    start: StartMode,
    module: nn.Module | None,
    network: Network | None,
    initial: Loaded | None,
) -> RunResult:
    """Train on the devices of ``fabric``; every process of a run calls this function."""
    if network is None:
        network = build_network(config, build_method(config, module, initial))
    task = PretrainTask(fabric, source, config, network)
    return task.result(train(task, fabric, run_settings(config, start, kernel_config(config))))
