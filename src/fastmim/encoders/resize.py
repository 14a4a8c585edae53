"""Change the image size of a backbone: resample its position tables and keep all other weights.

A model with timm's `set_input_size` changes its size itself. A model whose constructor takes the size is
rebuilt, and the weights are copied or resampled. Any other model accepts every size.
"""

import copy
import math
import warnings
from collections.abc import Callable, Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmim.encoders.probe import MOST_PREFIX_TOKENS
from fastmim.encoders.registry import MODEL_ERRORS, create, kwargs_at
from fastmim.errors import UsageError, first_line
from fastmim.system.size import Size

# Maps tensors keyed by a model's parameter names from the old shapes to the new shapes.
Resampler = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def carry_inside(prefix: str, resample: Resampler) -> Resampler:
    """Apply ``resample`` to the tensors of the submodule named ``prefix``; all others stay unchanged."""

    def carry_all(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        inside = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        return tensors | {prefix + name: tensor for name, tensor in resample(inside).items()}

    return carry_all


def carry_all_but(kept: Collection[str], resample: Resampler) -> Resampler:
    """Apply ``resample`` to all tensors except those named in ``kept``, which stay unchanged."""

    def carry_others(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        stay = {name: tensor for name, tensor in tensors.items() if name in kept}
        return stay | resample({name: tensor for name, tensor in tensors.items() if name not in kept})

    return carry_others


def resize(
    model: nn.Module, name: str, kwargs: dict[str, Any], old: Size, new: Size
) -> tuple[nn.Module, dict[str, Any]]:
    """Return the model at image size ``new``, and the arguments that build it at that size.

    Args:
        model: changed in place if it can change its size.
        name: name of the model.
        kwargs: arguments that built the model at size ``old``.
        old, new: (H, W) of the images.

    Raises:
        UsageError: the model cannot have that size.
    """
    # Let the model change its size, or build another one at the new size.
    if old == new:
        return model, kwargs
    set_input_size = getattr(model, "set_input_size", None)
    try:
        if set_input_size is not None:
            tables = bias_tables(model)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                set_input_size(img_size=new)
            _resample_bias_tables(model, tables)
            return model, kwargs_at(name, kwargs, model, new)
        if "img_size" not in kwargs:
            return model, kwargs  # convolutional: accepts every size
        with torch.random.fork_rng(devices=[]):
            rebuilt = create(name, {**kwargs, "img_size": list(new)})
    except MODEL_ERRORS as error:
        raise UsageError(f"{name} cannot be set to {new[0]}x{new[1]} pixels: {first_line(error)}") from error

    # Copy the weights to the new model; those whose shape depends on the size are resampled.
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


def carry_tensors(model: nn.Module, name: str, kwargs: dict[str, Any], old: Size, new: Size) -> Resampler:
    """Return a function that resamples tensors keyed by ``model``'s parameter names.

    The function loads the tensors into a copy of the model and resizes the copy by `resize`.
    """
    before = copy.deepcopy(model)

    def resample(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        stand_in = copy.deepcopy(before)
        with torch.no_grad():
            for key, parameter in stand_in.named_parameters():
                if key in tensors:
                    parameter.copy_(tensors[key])
        resized, _ = resize(stand_in, name, kwargs, old, new)
        return {key: p.detach().clone() for key, p in resized.named_parameters() if key in tensors}

    return resample


def bias_tables(model: nn.Module) -> dict[str, tuple[Tensor, Size]]:
    """Relative position tables by name, each with its window: parameters of modules that have a window."""
    tables = {}
    for module_name, module in model.named_modules():
        window = getattr(module, "window_size", None)
        if window is None:
            continue
        pair = (window, window) if isinstance(window, int) else (int(window[0]), int(window[1]))
        for name, parameter in module.named_parameters(prefix=module_name, recurse=False):
            tables[name] = (parameter.detach().clone(), pair)
    return tables


@torch.no_grad()
def _resample_bias_tables(model: nn.Module, before: dict[str, tuple[Tensor, Size]]) -> None:
    """Resample the tables whose windows have changed from the tables ``before`` (bicubic; timm's are linear).

    A table holds an entry for each offset within a window, 2w - 1 along each side, as (offsets, heads) or
    (heads, rows, columns); entries for other tokens come last. Paper: appendix A.3.2.
    """
    after = bias_tables(model)
    parameters = dict(model.named_parameters())
    for name, (table, old) in before.items():
        new = after[name][1]
        if old == new or table.shape == parameters[name].shape:
            continue
        if table.ndim == 3:
            size = (2 * new[0] - 1, 2 * new[1] - 1)
            parameters[name].copy_(_bicubic(table, 1, size, antialias=False))
        elif table.ndim == 2:
            parameters[name].copy_(bias_table_at(table, old, new))


def bias_table_at(table: Tensor, old: Size, new: Size) -> Tensor:
    """Resample a table (offsets, heads) for the window ``old`` to one for the window ``new`` (bicubic).

    Entries for other tokens, which come last, are unchanged.
    """
    rows, columns = 2 * old[0] - 1, 2 * old[1] - 1
    size = (2 * new[0] - 1, 2 * new[1] - 1)
    places, others = table[: rows * columns], table[rows * columns :]
    grid = _bicubic(torch.unflatten(places, 0, (rows, columns)), 0, size, antialias=False)
    return torch.cat([grid.flatten(0, 1), others])


def _resampled(what: str, table: Tensor, shape: torch.Size, old: Size, new: Size) -> Tensor:
    """Resample a table of positions or offsets to ``shape`` (bicubic); entries of prefix tokens are kept."""
    changed = [axis for axis in range(table.ndim) if table.shape[axis] != shape[axis]]
    if len(changed) == 2 and changed[1] == changed[0] + 1:
        sides = tuple(shape[axis] for axis in changed)
        if all(_as_grids(table.shape[axis], shape[axis], old, new) is None for axis in changed):
            return _bicubic(table, changed[0], sides)  # rows and columns
    resampled = table
    for axis in changed:
        grids = _as_grids(table.shape[axis], shape[axis], old, new)
        if grids is None:
            raise UsageError(
                f"{what} of shape {tuple(table.shape)} cannot be resampled to {tuple(shape)} "
                f"for {new[0]}x{new[1]} pixels"
            )
        prefix, before, after = grids
        head, places = torch.split(resampled, [prefix, table.shape[axis] - prefix], dim=axis)
        map_ = _bicubic(torch.unflatten(places, axis, before), axis, after)
        resampled = torch.cat([head, map_.flatten(axis, axis + 1)], dim=axis)
    return resampled


def _as_grids(before: int, after: int, old: Size, new: Size) -> tuple[int, Size, Size] | None:
    """Infer the number of prefix tokens and the two grids from the old and new length of an axis.

    Entries are positions of one stride; or positions in proportion to a square image; or offsets within a
    square window, 2w - 1 along each side; or offsets along one side. None: the lengths fit none of these.
    """
    for prefix in range(MOST_PREFIX_TOKENS):
        strides = [
            math.sqrt(size[0] * size[1] / (places - prefix)) if places > prefix else 0.5
            for places, size in ((before, old), (after, new))
        ]
        stride = int(strides[0])
        if strides[0] == strides[1] == stride and not any(side % stride for side in (*old, *new)):
            return prefix, (old[0] // stride, old[1] // stride), (new[0] // stride, new[1] // stride)
    for prefix in range(MOST_PREFIX_TOKENS):
        a, b = math.isqrt(max(before - prefix, 0)), math.isqrt(max(after - prefix, 0))
        if (a * a, b * b) != (before - prefix, after - prefix) or old[0] != old[1] or new[0] != new[1]:
            continue
        if a * new[0] == b * old[0] or (prefix == 0 and a % 2 == b % 2 == 1):
            return prefix, (a, a), (b, b)
    return (0, (before, 1), (after, 1)) if before % 2 == after % 2 == 1 else None


def _bicubic(table: Tensor, axis: int, size: tuple[int, ...], antialias: bool = True) -> Tensor:
    """Resample the axes ``axis`` and ``axis`` + 1 to ``size`` (bicubic, in float32)."""
    moved = table.movedim((axis, axis + 1), (-2, -1))
    flat = moved.reshape(1, -1, *moved.shape[-2:])
    resampled = F.interpolate(flat.float(), size, mode="bicubic", antialias=antialias).to(table.dtype)
    return resampled.reshape(*moved.shape[:-2], *size).movedim((-2, -1), (axis, axis + 1))
