"""What is settled before the first step: the network, the channels' statistics, and what is the same."""

import copy
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from fastmim import __version__
from fastmim.config import PretrainConfig, build, differences, read_yaml, to_yaml
from fastmim.data.crops import IMAGENET_MEAN, IMAGENET_STD
from fastmim.data.images import ImageSource
from fastmim.data.loader import choose_workers
from fastmim.data.stats import measure_stats
from fastmim.encoders.adapter import build_encoder
from fastmim.errors import UsageError
from fastmim.methods.input_masking import InputMasking
from fastmim.targets import build_target
from fastmim.train.device import choose_micro_batch, saved_bytes
from fastmim.train.rundir import CONFIG
from fastmim.train.stages import Leg

MEASURED_IMAGES = 1024  # for the statistics of the channels

# What a resumed run may change: neither the weights nor anything that is drawn depends on it.
FREE_ON_RESUME = frozenset(
    {
        "data",
        "out",
        "workers",
        "max_unreadable",
        "checkpoint_every_minutes",
        "checkpoint_every_steps",
        "keep_checkpoints",
        "bn_recalibrate",
        "bn_images",
    }
)


def build_method(config: PretrainConfig, module: nn.Module | None = None) -> InputMasking:
    """The backbone at the first stage's size, and the method around it, with weights drawn from the seed."""
    torch.manual_seed(config.seed)
    model = config.model if module is None else module
    encoder = build_encoder(model, config.size, config.in_chans, config.model_kwargs, config.encoder)
    target = build_target(config.target, encoder.stride)
    return InputMasking(encoder, target, config.mask, config.decoder, config.target.loss)


def check_stages(config: PretrainConfig, module: nn.Module | None) -> None:
    """Raise UsageError unless the model works, at the size of every stage."""
    method = build_method(config, module if module is None or not config.stages else copy.deepcopy(module))
    for stage in config.course[1:]:
        try:
            method.set_image_size(stage.size)
        except UsageError as error:
            raise UsageError(f"stages: {stage}: {error}") from error


def channel_statistics(
    config: PretrainConfig, source: ImageSource
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel: those given, ImageNet's for RGB, else measured."""
    if config.crop.mean is not None:
        return config.crop.statistics
    if config.in_chans == len(IMAGENET_MEAN):
        return IMAGENET_MEAN, IMAGENET_STD
    stats = measure_stats(source, config.in_chans, config.size, MEASURED_IMAGES, config.seed)
    return stats.mean, stats.std


def check_resumed(run: Path, config: PretrainConfig, state: dict[str, Any], facts: dict[str, Any]) -> None:
    """Raise UsageError unless the run would go on as it began."""
    stored = build(PretrainConfig, read_yaml(run / CONFIG), f"{run / CONFIG}: ")
    changed = differences(stored, config)
    # Arguments of the model follow from other settings, which are what a person gave.
    for name in sorted(changed, key=lambda name: name == "model_kwargs"):
        old, new = (",".join(map(str, v)) if name == "stages" else repr(v) for v in changed[name])
        if name not in FREE_ON_RESUME:
            raise UsageError(
                f"{name} = {new} differs from the {old} that the run in {run} began with; "
                "leave it out to resume, or start a new run"
            )
    if state["data_digest"] != facts["data_digest"]:
        raise UsageError(f"data: {config.data} no longer holds the images that the run in {run} began with")
    if state["world_size"] != facts["world_size"]:
        raise UsageError(
            f"the run in {run} began with {state['world_size']} processes, not {facts['world_size']}"
        )


def fitting_micro_batch(
    fabric: Fabric, method: InputMasking, leg: Leg, images: torch.Tensor, mask: torch.Tensor
) -> int:
    """As many images as fit, judged by what two of them make autograd keep."""
    count = min(2, len(images))

    def forward() -> object:
        with fabric.autocast():
            return method(images[:count], mask[:count])

    weights = sum(p.numel() * p.element_size() for p in method.parameters())
    method.eval()  # the running statistics of batch norms are none of this trial's business
    per_image = saved_bytes(method, forward) // count
    method.train()
    share = leg.batch_size // fabric.world_size
    return choose_micro_batch(share, per_image, 3 * weights, fabric.device)


def loader_workers(config: PretrainConfig, fabric: Fabric) -> int:
    if config.workers is not None:
        return config.workers
    return choose_workers(max(1, fabric.world_size // config.num_nodes))


def config_text(config: PretrainConfig) -> bytes:
    head = f"# fastmim {__version__}; `fastmim pretrain --config FILE --out FOLDER` repeats this run.\n"
    return (head + to_yaml(config)).encode()
