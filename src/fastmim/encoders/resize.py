"""The same backbone at another image size: its position tables are resampled, everything else is kept.

A model that can change its size does so itself (timm's `set_input_size`). One that is told its size at
construction is built anew, and the weights are carried over. One that is neither takes any size.
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmim.encoders.models import MODEL_ERRORS, create, first_line, kwargs_at
from fastmim.encoders.probe import MOST_PREFIX_TOKENS
from fastmim.errors import UsageError
from fastmim.grids import Size

# Tensors under the names of a model's parameters, in its old shapes -> the same in its new shapes.
Carry = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def resize(
    model: nn.Module, name: str, kwargs: dict[str, Any], old: Size, new: Size
) -> tuple[nn.Module, dict[str, Any]]:
    """The model at image size ``new``, and the arguments that build it at that size.

    Args:
        model: is changed itself where it can change its size.
        kwargs: those that built it at size ``old``.

    Raises:
        UsageError: it cannot have that size.
    """
    if old == new:
        return model, kwargs
    set_input_size = getattr(model, "set_input_size", None)
    try:
        if set_input_size is not None:
            set_input_size(img_size=new)
            return model, kwargs_at(name, kwargs, model, new)
        if "img_size" not in kwargs:
            return model, kwargs  # convolutional: any size will do
        with torch.random.fork_rng(devices=[]):
            rebuilt = create(name, {**kwargs, "img_size": list(new)})
    except MODEL_ERRORS as error:
        raise UsageError(f"{name} cannot be set to {new[0]}x{new[1]} pixels: {first_line(error)}") from error
    learned = {key for key, _ in model.named_parameters()}
    state = rebuilt.state_dict()
    for key, value in model.state_dict().items():
        if value.shape == state[key].shape and (key in learned or value.is_floating_point()):
            state[key] = value
        elif key in learned:
            state[key] = _resampled(f"{name}: {key}", value, state[key].shape, old, new)
    rebuilt.load_state_dict(state)
    parameter = next(model.parameters())
    return rebuilt.to(parameter.device, parameter.dtype), kwargs_at(name, kwargs, rebuilt, new)


def carry_tensors(model: nn.Module, name: str, kwargs: dict[str, Any], old: Size, new: Size) -> Carry:
    """What resizes tensors that belong to ``model``'s parameters: they go through the model's own way."""
    before = copy.deepcopy(model)

    def carry(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        stand_in = copy.deepcopy(before)
        with torch.no_grad():
            for key, parameter in stand_in.named_parameters():
                if key in tensors:
                    parameter.copy_(tensors[key])
        resized, _ = resize(stand_in, name, kwargs, old, new)
        return {key: p.detach().clone() for key, p in resized.named_parameters() if key in tensors}

    return carry


def _resampled(what: str, table: Tensor, shape: torch.Size, old: Size, new: Size) -> Tensor:
    """A table of positions resampled (bicubic) to ``shape``; prefix tokens are kept."""
    changed = [axis for axis in range(table.ndim) if table.shape[axis] != shape[axis]]
    if len(changed) == 2 and changed[1] == changed[0] + 1:
        return _bicubic(table, changed[0], tuple(shape[axis] for axis in changed))
    if len(changed) == 1:
        axis = changed[0]
        for prefix in range(MOST_PREFIX_TOKENS):
            grids = _grid_of(table.shape[axis] - prefix, old), _grid_of(shape[axis] - prefix, new)
            if grids[0] and grids[1]:
                head, places = torch.split(table, [prefix, table.shape[axis] - prefix], dim=axis)
                places = torch.unflatten(places, axis, grids[0])
                return torch.cat([head, _bicubic(places, axis, grids[1]).flatten(axis, axis + 1)], dim=axis)
    raise UsageError(
        f"{what} of shape {tuple(table.shape)} cannot be resampled to {tuple(shape)} "
        f"for {new[0]}x{new[1]} pixels"
    )


def _grid_of(places: int, image_size: Size) -> Size | None:
    """The grid of ``places`` that a whole stride gives on an image."""
    stride = math.sqrt(image_size[0] * image_size[1] / places) if places > 0 else 0.5
    if not stride.is_integer() or image_size[0] % int(stride) or image_size[1] % int(stride):
        return None
    return image_size[0] // int(stride), image_size[1] // int(stride)


def _bicubic(table: Tensor, axis: int, size: tuple[int, ...]) -> Tensor:
    """Resample the axes ``axis`` and ``axis`` + 1."""
    moved = table.movedim((axis, axis + 1), (-2, -1))
    flat = moved.reshape(1, -1, *moved.shape[-2:])
    resampled = F.interpolate(flat.float(), size, mode="bicubic", antialias=True).to(table.dtype)
    return resampled.reshape(*moved.shape[:-2], *size).movedim((-2, -1), (axis, axis + 1))
