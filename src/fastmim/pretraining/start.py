"""What is settled before the first step: the network, the channels' statistics, and what is the same."""

import copy
from functools import partial

import torch
from lightning_fabric import Fabric
from torch import nn

from fastmim.config import ALWAYS_FREE, PretrainConfig
from fastmim.decoders import checkpoint_blocks
from fastmim.encoders.adapter import build_encoder
from fastmim.errors import UsageError
from fastmim.methods.base import Method
from fastmim.methods.catalogue import METHODS
from fastmim.targets import compiled_target
from fastmim.train.device import fit_micro_batch
from fastmim.train.kernels import Kernels, apply, checkpoint_activations
from fastmim.train.optim import use_kernel
from fastmim.train.stages import Leg

FREE_ON_RESUME = ALWAYS_FREE | {"bn_recalibrate", "bn_images"}


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
    return kind.build(encoder, config, getattr(config, kind.own) if kind.own else None)


def check_stages(config: PretrainConfig, module: nn.Module | None) -> None:
    """Raise UsageError unless the model works, at the size of every stage."""
    method = build_method(config, module if module is None or not config.stages else copy.deepcopy(module))
    if config.activation_checkpointing:
        checkpoint_activations(copy.deepcopy(method.encoder.model), config.model)
    for stage in config.course[1:]:
        try:
            method.set_image_size(stage.size)
        except UsageError as error:
            raise UsageError(f"stages: {stage}: {error}") from error


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


def fitting_micro_batch(
    fabric: Fabric, method: Method, leg: Leg, images: torch.Tensor, mask: torch.Tensor
) -> int:
    """As many images as fit, judged by what two of them make autograd keep."""
    count = min(2, len(images))
    forward = partial(method, images[:count], mask[:count])
    return fit_micro_batch(fabric, method, forward, count, leg.batch_size)
