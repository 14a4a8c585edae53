"""What is settled before the first step: the network, the channels' statistics, and what is the same."""

import copy
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from fastmim.config import ALWAYS_FREE, PretrainConfig
from fastmim.encoders.batch_size import check_batch
from fastmim.encoders.build import build_encoder
from fastmim.errors import UsageError
from fastmim.methods.base import Method
from fastmim.methods.distillation import Distilled
from fastmim.methods.frozen_teacher import Teacher
from fastmim.methods.registry import METHODS
from fastmim.mim.decoders import checkpoint_blocks
from fastmim.mim.grids import Size
from fastmim.mim.targets import compiled_target
from fastmim.pretraining.teacher import load_teaching
from fastmim.pretraining.teacher_features import make_folder
from fastmim.train.device import fit_micro_batch
from fastmim.train.kernels import KernelConfig, Kernels, apply, checkpoint_activations
from fastmim.train.optim import use_kernel
from fastmim.train.stages import Leg, Stage

# Of a teacher, the weights decide, not where they lie or who says what they are of.
FREE_ON_RESUME = ALWAYS_FREE | {
    "bn_recalibrate",
    "bn_images",
    "distill.teacher",
    "distill.model",
    "distill.model_kwargs",
    "distill.cache",
}


def build_method(config: PretrainConfig, module: nn.Module | None = None) -> Method:
    """The backbone at the first stage's size, and the method around it, with weights drawn from the seed."""
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
    return kind.build(encoder, config)


def check_stages(config: PretrainConfig, module: nn.Module | None) -> None:
    """Raise UsageError unless the model works, at the size of every stage, and so does its teacher."""
    method = build_method(config, module if module is None or not config.stages else copy.deepcopy(module))
    if config.activation_checkpointing and not method.recomputes:
        raise UsageError(f"activation_checkpointing: method = {config.method} cannot; leave it out")
    if config.activation_checkpointing:
        checkpoint_activations(copy.deepcopy(method.encoder.model), config.model)
    if config.distill.teacher:
        _check_teacher(config, method)
        if config.distill.cache is not None:
            make_folder(Path(config.distill.cache).expanduser())
    _check_batch(config, method, config.course[0])
    for stage in config.course[1:]:
        try:
            method.set_image_size(stage.size)
            _check_batch(config, method, stage)
            if config.distill.teacher and config.distill.size is None:
                _check_teacher(config, method)
        except UsageError as error:
            raise UsageError(f"stages: {stage}: {error}") from error


def _check_batch(config: PretrainConfig, method: Method, stage: Stage) -> None:
    encoder = method.encoder
    share = (stage.batch_size or config.batch_size) // (config.devices * config.num_nodes)
    micro_batch = stage.micro_batch or config.micro_batch
    check_batch(encoder, config.model, encoder.image_size, config.in_chans, share, micro_batch)


def kernel_config(config: PretrainConfig) -> KernelConfig:
    """What is open about kernels. The trial knows no teacher: beside one, no compiling unasked."""
    if config.distill.teacher and config.kernels.compile == "auto":
        return replace(config.kernels, compile="none")
    return config.kernels


def kernel_facts(config: PretrainConfig, method: Method, image_size: Size) -> dict[str, Any]:
    """What decides how fast which kernels are: the network, and what the method does with it."""
    own = asdict(getattr(config, method.own)) if method.own else {}
    return {
        "model": config.model,
        "arguments": repr(method.encoder.model_kwargs),
        "depth": config.encoder.depth,
        "size": list(image_size),
        "method": config.method,
        "settings": [asdict(config.mask), asdict(config.target), asdict(config.decoder), own],
    }


def use_kernels(
    config: PretrainConfig, method: Method, optimizer: torch.optim.AdamW, kernels: Kernels
) -> None:
    """Have the steps computed so."""
    apply(method, kernels)
    use_kernel(optimizer, kernels.optimizer)
    if config.activation_checkpointing:
        checkpoint_activations(method.encoder.model, config.model)
        checkpoint_blocks(method)
    if kernels.compile == "target":
        method.target = compiled_target(method.target)


def _check_teacher(config: PretrainConfig, method: Method) -> None:
    if config.crop.mean is None:  # not measured yet, and of no account here
        chans = config.in_chans
        mean, std = (
            (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD) if chans == 3 else ((0.0,) * chans, (1.0,) * chans)
        )
        config = replace(config, crop=replace(config.crop, mean=mean, std=std))
    teaching = load_teaching(config, method, method.image_size)
    assert teaching is not None
    with torch.random.fork_rng(devices=[]):
        teaching.learner(method, config.distill)


def fitting_micro_batch(
    fabric: Fabric,
    learner: Method | Distilled,
    teacher: Teacher | None,
    leg: Leg,
    images: torch.Tensor,
    mask: torch.Tensor,
) -> int:
    """As many images as fit, judged by what two of them make autograd keep."""
    count = min(2, len(images))
    lessons = teacher.blank(count) if teacher is not None else []
    forward = partial(learner, images[:count], mask[:count], *lessons)
    return fit_micro_batch(fabric, learner, forward, count, leg.batch_size)
