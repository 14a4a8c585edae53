"""Feature maps of a backbone's layers, computed in the same forward pass as its final features.

They come from timm's `forward_intermediates`: a layer is a block of a plain vision transformer, or a stage of
a pyramid. A model without that method has one layer, its final features.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastmim.encoders.probe import Way, last_features
from fastmim.encoders.registry import MODEL_ERRORS, weightless
from fastmim.errors import UsageError, first_line
from fastmim.system.size import Size

WAY = "forward_intermediates"


class Layer(NamedTuple):
    """Width and grid of a layer's feature map."""

    width: int
    grid: Size


class Keep:
    """Requested layers, and their feature maps after a forward pass."""

    def __init__(self, wanted: Sequence[int]) -> None:
        self.wanted = tuple(wanted)
        """Layer indices from 0, in any order."""
        self.maps: list[Tensor] = []
        """Map (B, D, h, w) of each requested layer."""


def has_layers(model: nn.Module) -> bool:
    """Whether the model gives the maps of its layers (has `forward_intermediates`)."""
    return hasattr(model, WAY)


def find_layers(model: nn.Module, name: str, image_size: Size, in_chans: int) -> tuple[Layer, ...]:
    """Width and grid of each layer of a model with `forward_intermediates`.

    Raises:
        UsageError: the model does not return the maps of its layers.
    """
    try:
        maps = _look(weightless(model), image_size, in_chans, "meta")
    except MODEL_ERRORS:  # some models read tensor values, which the meta device does not have
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        try:
            maps = _look(model, image_size, in_chans, device)
        except MODEL_ERRORS as error:
            raise UsageError(f"{name} does not return the maps of its layers: {first_line(error)}") from error
    return tuple(Layer(map_.shape[1], (map_.shape[2], map_.shape[3])) for map_ in maps)


@torch.no_grad()
def _look(model: nn.Module, image_size: Size, in_chans: int, device: torch.device | str) -> list[Tensor]:
    was_training = model.training
    model.eval()
    try:
        images = torch.zeros(1, in_chans, *image_size, device=device)
        maps: list[Tensor] = model.forward_intermediates(  # type: ignore[operator]
            images, output_fmt="NCHW", intermediates_only=True
        )
    finally:
        model.train(was_training)
    if any(map_.ndim != 4 for map_ in maps):
        raise ValueError("they are not maps")
    return maps


def features_and_layers(
    model: nn.Module, images_BCHW: Tensor, way: Way, wanted: Sequence[int]
) -> tuple[Any, list[Tensor]]:
    """Compute the output of `probe.last_features` and the maps (B, D, h, w) of layers ``wanted`` together."""
    forward = model.forward_intermediates
    if way == WAY:
        every = forward(images_BCHW, output_fmt="NCHW", intermediates_only=True)  # type: ignore[operator]
        return every[-1], [every[number] for number in wanted]
    numbers = sorted(set(wanted))
    output, maps = forward(images_BCHW, indices=numbers, output_fmt="NCHW")  # type: ignore[operator]
    if isinstance(output, list | tuple):
        output = output[-1]
    return output, [maps[numbers.index(number)] for number in wanted]


def layers_alone(model: nn.Module, images_BCHW: Tensor, wanted: Sequence[int]) -> list[Tensor]:
    """Compute the maps (B, D, h, w) of the layers ``wanted``, and stop after the last of them."""
    numbers = sorted(set(wanted))
    maps = model.forward_intermediates(  # type: ignore[operator]
        images_BCHW, indices=numbers, output_fmt="NCHW", intermediates_only=True, stop_early=True
    )
    return [maps[numbers.index(number)] for number in wanted]


def check_same_features(model: nn.Module, name: str, image_size: Size, in_chans: int, way: Way) -> None:
    """Raise UsageError unless a model's features are the same with and without requested layers."""
    parameter = next(model.parameters())
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, in_chans, *image_size, generator=generator).to(parameter)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            alone = last_features(model, images, way)
            beside, _ = features_and_layers(model, images, way, [0])
    except MODEL_ERRORS as error:
        raise UsageError(f"{name} does not return the maps of its layers: {first_line(error)}") from error
    finally:
        model.train(was_training)
    if alone.shape != beside.shape or not torch.allclose(alone, beside, rtol=1e-3, atol=1e-3):
        raise UsageError(f"{name} returns other features if the maps of its layers are requested too")
