"""Build the model, check it at the image size of every stage, and complete the configuration from it."""

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastmim.config import ALWAYS_FREE, PretrainConfig, resolved
from fastmim.encoders.batch_size import check_batch
from fastmim.encoders.build import build_encoder
from fastmim.errors import UsageError
from fastmim.methods.base import Method
from fastmim.methods.distillation import Distilled
from fastmim.methods.registry import METHODS
from fastmim.methods.settings import TRAITS
from fastmim.mim.decoders import checkpoint_blocks
from fastmim.pretraining.initial import take_weights
from fastmim.pretraining.teacher import TeacherSetup, load_teacher
from fastmim.pretraining.teacher_features import make_folder
from fastmim.system.size import Size
from fastmim.train.kernels import KernelChoices, apply, checkpoint_activations
from fastmim.train.optim import use_kernel
from fastmim.train.settings import KernelConfig
from fastmim.train.stages import StageConfig
from fastmim.weights.loaded import Loaded

# A teacher is identified by the digest of its weights, not by its path or model name.
FREE_ON_RESUME = ALWAYS_FREE | {
    "bn_recalibrate",
    "bn_images",
    "distill.teacher",
    "distill.model",
    "distill.model_kwargs",
    "distill.cache",
}


def build_method(
    config: PretrainConfig, module: nn.Module | None = None, initial: Loaded | None = None
) -> Method:
    """Build the backbone at the first stage's size and the method around it; new weights depend on the seed.

    Args:
        module: the backbone itself, if it is not built by name.
        initial: weights that the backbone starts from.

    Raises:
        UsageError: the backbone or the method does not work at this size.
    """
    torch.manual_seed(config.seed)
    kind = METHODS[config.method]
    model = config.model if module is None else module
    size = kind.encoder_size(config.size)
    try:
        encoder = build_encoder(model, size, config.in_chans, config.model_kwargs, config.encoder)
    except UsageError as error:
        if size == config.size:
            raise
        whole, part = (f"{height}x{width}" for height, width in (config.size, size))
        raise UsageError(f"method = {config.method} encodes {part} of {whole} pixels: {error}") from error
    if initial is not None:
        take_weights(encoder, initial, config.weights)
    return kind.build(encoder, config)


@dataclass(frozen=True)
class Network:
    """The module that is trained, and its teacher in a run with distillation."""

    method: Method
    teacher_setup: TeacherSetup | None
    module: Method | Distilled
    """The method, or the method combined with the distillation loss."""

    def with_teacher_at(self, config: PretrainConfig, image_size: Size) -> "Network":
        """Return this network with its teacher set up for another image size; the module is unchanged."""
        if self.teacher_setup is None:
            return self
        teacher_setup = load_teacher(config.distill, config.crop, config.seed, self.method, image_size)
        return replace(self, teacher_setup=teacher_setup)


def build_network(config: PretrainConfig, method: Method) -> Network:
    """Add the teacher that ``config`` names to a newly built method.

    The projections are drawn from torch's generator, after the method's weights.
    """
    teacher_setup = load_teacher(config.distill, config.crop, config.seed, method, method.image_size)
    if teacher_setup is None:
        return Network(method, None, method)
    return Network(method, teacher_setup, teacher_setup.learner(method, config.distill))


def resolve(config: PretrainConfig, network: Network) -> PretrainConfig:
    """Return ``config`` with the values that follow from the model and the data filled in."""
    method = network.method
    encoder = method.encoder
    config = resolved(
        config, encoder.stride, method.target.cell, encoder.full_kwargs, *config.crop.statistics
    )
    if network.teacher_setup is not None:
        layers = tuple(map(str, network.teacher_setup.pairs))
        config = replace(config, distill=replace(config.distill, layers=layers))
    return config


def check_stages(config: PretrainConfig, method: Method) -> None:
    """Raise UsageError unless the method works at the size of every stage; draws no random numbers."""
    if config.activation_checkpointing and not method.supports_activation_checkpointing:
        raise UsageError(f"activation_checkpointing: method = {config.method} cannot; leave it out")
    with torch.random.fork_rng(devices=[]):
        if config.activation_checkpointing:
            checkpoint_activations(copy.deepcopy(method.encoder.model), config.model)
        if config.distill.cache is not None:
            make_folder(Path(config.distill.cache).expanduser())
        _check_batch(config, method, config.planned_stages[0])
        grown = copy.deepcopy(method) if len(config.planned_stages) > 1 else method
        for stage in config.planned_stages[1:]:
            with _stage_named(stage):
                grown.set_image_size(stage.size)
                _check_batch(config, grown, stage)


def check_teacher(config: PretrainConfig, network: Network) -> None:
    """Raise UsageError unless the teacher accepts the images of every stage; draws no random numbers."""
    if network.teacher_setup is None or config.distill.size is not None:
        return
    with torch.random.fork_rng(devices=[]):
        method = copy.deepcopy(network.method) if len(config.planned_stages) > 1 else network.method
        for stage in config.planned_stages[1:]:
            with _stage_named(stage):
                method.set_image_size(stage.size)
                load_teacher(config.distill, config.crop, config.seed, method, stage.size)


@contextlib.contextmanager
def _stage_named(stage: StageConfig) -> Iterator[None]:
    """Add the stage to the message of a UsageError that is raised within the block."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"stages: {stage}: {error}") from error


def _check_batch(config: PretrainConfig, method: Method, stage: StageConfig) -> None:
    encoder = method.encoder
    share = (stage.batch_size or config.batch_size) // (config.devices * config.num_nodes)
    micro_batch = stage.micro_batch or config.micro_batch
    check_batch(encoder, config.model, encoder.image_size, config.in_chans, share, micro_batch)


def kernel_config(config: PretrainConfig) -> KernelConfig:
    """Return the kernel settings.

    Kernels are timed without the teacher, so "auto" compiles nothing in a run with a teacher.
    """
    if config.distill.teacher and config.kernels.compile == "auto":
        return replace(config.kernels, compile="none")
    return config.kernels


def kernel_facts(config: PretrainConfig, method: Method, image_size: Size) -> dict[str, Any]:
    """Return the settings of the model and the method that the kernel timings depend on."""
    group = TRAITS[config.method].config_group
    own = asdict(getattr(config, group)) if group else {}
    return {
        "model": config.model,
        "arguments": repr(method.encoder.model_kwargs),
        "depth": config.encoder.depth,
        "size": list(image_size),
        "method": config.method,
        "settings": [asdict(config.mask), asdict(config.target), asdict(config.decoder), own],
    }


def use_kernels(
    config: PretrainConfig, method: Method, optimizer: torch.optim.AdamW, kernels: KernelChoices
) -> None:
    """Apply the chosen kernels, and activation checkpointing if set, to the method and its optimiser."""
    apply(method, kernels)
    use_kernel(optimizer, kernels.optimizer)
    if config.activation_checkpointing:
        checkpoint_activations(method.encoder.model, config.model)
        checkpoint_blocks(method)
    if kernels.compile == "target":
        method.target = method.target.compile()
