"""The ways into a pre-training run: from Python, and from a finished configuration."""

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from fastmim.config import PretrainConfig, merge
from fastmim.config.usage import check_pretraining
from fastmim.data.loading.channel_stats import channel_statistics
from fastmim.data.sources.open import open_images
from fastmim.encoders.build import name_of
from fastmim.pretraining.build import check_stages
from fastmim.pretraining.task import RunResult, run_on
from fastmim.pretraining.teacher import with_factory
from fastmim.recipes import base_config
from fastmim.train.distributed import run_everywhere, teller
from fastmim.train.resuming import newest_checkpoint
from fastmim.train.settings import Resume


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
        out: folder that the run is written to.
        model: timm name of the backbone, ``package.module:factory``, or a module of your own that turns
            images into a feature map (B, D, h, w), tokens (B, h*w, D), or a list that ends with one. A module
            is trained in place where there is one device; give the same again to resume, and to
            `load_encoder`.
        config: YAML file with settings; arguments given here win.
        recipe: name of a recipe to start from.
        resume: go on with the run in ``out``; "or-begin": if there is one.
        overwrite: replace the run in ``out``.
        quiet: print nothing.
        trust_code: import and call whatever factory a file names: ``config``, the run's that is resumed, or
            the teacher's. Without it only those that are given here, as ``model`` and ``distill.model``.
        settings: any field of `fastmim.config.PretrainConfig`; groups as mappings
            (``mask={"ratio": 0.6}``) or dotted (``**{"mask.ratio": 0.6}``). ``method`` begins with the
            settings of its own paper.

    Returns:
        Where the run lies and how it ended. With several devices they are started as new processes, so
        a script must call this below ``if __name__ == "__main__":``.

    Raises:
        UsageError: a setting, path or model that does not work; nothing was started.
        RunError: the run had to end; its last checkpoint is intact.
    """
    module = model if isinstance(model, nn.Module) else None
    name = name_of(model) if isinstance(model, nn.Module) else model
    named = {"data": data, "out": out, "model": name}
    given = {name: os.fspath(value) for name, value in named.items() if value is not None} | settings
    resumed = given.get("out") if resume else None
    base = base_config(
        PretrainConfig, config, recipe, resumed, settings.get("method"), given, trust_code=trust_code
    )
    return run_pretraining(merge(base, given), resume, overwrite, quiet, module, trust_code)


def run_pretraining(
    config: PretrainConfig,
    resume: Resume = False,
    overwrite: bool = False,
    quiet: bool = False,
    module: nn.Module | None = None,
    trust_code: bool = False,
) -> RunResult:
    """Run a configuration, on one device in this process or on several in processes of their own.

    Args:
        config: the models that it names may be imported: whoever read it from a file has asked.
        module: what ``config.model`` names, where that is no name that a model can be built from.
        trust_code: the factory that the teacher's file names may be imported, too.
    """
    resumes = check_pretraining(config, resume, overwrite)
    run = Path(config.out).expanduser()
    config = replace(config, out=str(run))
    if trust_code:
        config = replace(config, distill=with_factory(config.distill))
    say = teller(quiet)
    say(f"{config.data}: looking for images")
    source = open_images(config.data, config.columns, config.out)
    if not resumes:  # what does not work is told before anything is written
        say(f"{config.model}: trying it at every size that the run has")
        check_stages(config, module)
    mean, std = channel_statistics(
        config.crop, source, config.in_chans, config.size, config.seed, config.max_pixels, say
    )
    config = replace(config, crop=replace(config.crop, mean=mean, std=std))
    checkpoint = newest_checkpoint(run) if resumes else None
    precision = checkpoint.state["choices"]["precision"] if checkpoint else config.precision
    start = partial(
        run_on,
        source=source,
        config=config,
        resume=resume,
        overwrite=overwrite,
        quiet=quiet,
        module=module,
    )
    return run_everywhere(config.accelerator, config.devices, config.num_nodes, precision, start)
