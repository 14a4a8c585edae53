"""Check the smallest micro-batch of a backbone: a batch norm needs more than one value of each channel."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastmim.encoders.registry import weightless
from fastmim.errors import UsageError
from fastmim.system.size import Size

COMPLAINT = "more than 1 value per channel"  # part of PyTorch's message, for every kind of batch norm


def has_batch_norm(module: nn.Module) -> bool:
    """Whether a layer computes statistics over the images of a batch."""
    return any(isinstance(part, _BatchNorm) for part in module.modules())


def fails_on_one(module: nn.Module, image_size: Size, in_chans: int) -> bool:
    """Whether ``module`` cannot train on one image of ``image_size``, as its smallest map is one position."""
    if not has_batch_norm(module):
        return False
    images = torch.empty(1, in_chans, *image_size, device="meta")
    try:
        weightless(module).train()(images)
    except ValueError as error:
        return COMPLAINT in str(error)
    except Exception:  # the model does not run on the meta device; its first step will raise
        return False
    return False


def check_batch(
    module: nn.Module, name: str, image_size: Size, in_chans: int, share: int, micro_batch: int | None
) -> None:
    """Raise UsageError if a step would train on one image at a time and the model does not support that.

    Args:
        module: the model.
        name: name of the model, for the error message.
        image_size: (H, W) of the images.
        in_chans: channels of the images.
        share: images per device in each step.
        micro_batch: images per forward pass; None: the whole share.
    """
    at_a_time = min(share, micro_batch or share)
    if at_a_time > 1 or not fails_on_one(module, image_size, in_chans):
        return
    setting = "micro_batch" if micro_batch == 1 and share > 1 else "batch_size"
    height, width = image_size
    raise UsageError(
        f"{setting}: {name} has batch norms, which cannot learn from one image of {height}x{width} pixels "
        "at a time; give 2 or more for each device, or larger images"
    )


def explain(error: ValueError) -> str | None:
    """Advice for the user if a batch norm raised ``error`` for a single value; None for other errors."""
    if COMPLAINT not in str(error):
        return None
    return (
        "a batch norm got one image at a time; give a batch_size and micro_batch of 2 or more for each device"
    )
