"""Start a run of detection or segmentation: what both do alike."""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn

from fastmim.config import launch, merge, run_settings
from fastmim.config.transfer import DenseConfig
from fastmim.config.usage import check_transfer
from fastmim.data.seeds import FEW_SEED
from fastmim.data.settings import images_wanted
from fastmim.downstream.backbone import PyramidBackbone, load_backbone, with_factory
from fastmim.downstream.dense_task import AnnotatedImages
from fastmim.encoders.build import name_of
from fastmim.encoders.trust import Trust
from fastmim.errors import UsageError
from fastmim.recipes import base_config
from fastmim.train.distributed import starts_processes, teller
from fastmim.train.run import train
from fastmim.train.settings import Resume, StartMode
from fastmim.train.task import Ended, Task

A = TypeVar("A", bound=AnnotatedImages)
C = TypeVar("C", bound=DenseConfig)
R_co = TypeVar("R_co", covariant=True)


class ResultTask(Task, Protocol[R_co]):
    """A task that gives a result to Python callers."""

    def result(self, ended: Ended) -> R_co:
        """Return the result of the run."""
        ...


class Kind(NamedTuple):
    """What distinguishes one of the tasks from the other; all picklable."""

    open_data: Callable[[Any], tuple[Any, Any]]
    """Configuration -> training and validation data."""
    resolve: Callable[[Any, PyramidBackbone, Any, Callable[[str], None]], Any]
    """Configuration, backbone, training data, printer -> complete configuration."""
    task: Callable[[Fabric, Any, Any, Any, PyramidBackbone], ResultTask[Any]]
    """Device, training data, validation data, configuration, backbone -> task."""


def configured(
    config_class: type[C],
    places: Mapping[str, str | os.PathLike[str] | None],
    model: str | nn.Module | None,
    settings: Mapping[str, Any],
    config: str | os.PathLike[str] | None,
    recipe: str | None,
    resume: Resume,
    trust_code: bool,
) -> C:
    """Return the configuration that a Python caller describes.

    Args:
        places: encoder, data and out.
    """
    scratch = places.get("encoder") == "none"
    name = (name_of(model) if scratch else None) if isinstance(model, nn.Module) else model
    named = {**places, "model": name}
    given = {name: os.fspath(value) for name, value in named.items() if value is not None} | dict(settings)
    resumed = given.get("out") if resume else None
    base = base_config(config_class, config, recipe, resumed, given=given, trust_code=trust_code)
    return merge(base, given)


def run_dense(
    config: DenseConfig, start: StartMode, module: nn.Module | None, trust_code: bool, kind: Kind
) -> Any:
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
    say(f"{config.data}: looking for images and annotations")
    training, validation = kind.open_data(config)
    training = few_images(training, config)
    backbone = build(config, module)
    with torch.random.fork_rng(devices=[]):
        config = kind.resolve(config, backbone, training, say)
    worker = partial(
        _run_on,
        training=training,
        validation=validation,
        config=config,
        start=start,
        module=module,
        backbone=None if starts_processes(config.devices, config.num_nodes) else backbone,
        kind=kind,
    )
    return launch(config, resumes, worker)


def few_images(training: A, config: DenseConfig) -> A:
    """Draw the images that ``config.labels`` wants; a larger number contains a smaller one of the same seed.

    Raises:
        UsageError: there are fewer images.
    """
    if config.labels is None:
        return training
    wanted = images_wanted(config.labels, len(training))
    if wanted > len(training):
        raise UsageError(f"labels = {config.labels}: there are only {len(training)} training images")
    order = np.random.default_rng([FEW_SEED, config.seed]).permutation(len(training))
    return training.take(np.sort(order[:wanted]))


def build(config: DenseConfig, module: nn.Module | None) -> PyramidBackbone:
    """Build the backbone that ``config`` describes; newly initialised weights depend on the seed."""
    torch.manual_seed(config.seed)
    return load_backbone(config, module)


def _run_on(
    fabric: Fabric,
    training: Any,
    validation: Any,
    config: DenseConfig,
    start: StartMode,
    module: nn.Module | None,
    backbone: PyramidBackbone | None,
    kind: Kind,
) -> Any:
    """Train on the devices of ``fabric``; every process of a run calls this function."""
    if backbone is None:
        backbone = build(config, module)
    torch.manual_seed(config.seed)  # for the heads
    task = kind.task(fabric, training, validation, config, backbone)
    return task.result(train(task, fabric, run_settings(config, start, config.kernels)))
