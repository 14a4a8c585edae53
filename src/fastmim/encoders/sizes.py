"""Find the image sizes at which a backbone runs, by trial on the meta device where possible."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from fastmim.encoders.probe import Features, look_at
from fastmim.encoders.registry import MODEL_ERRORS, arguments_of, create, without_memory
from fastmim.errors import UsageError, first_line

TRIED_SIDES = (64, 96, 128, 160, 192, 224, 256)
DIVISIBLE_SIDES = (128, 112, 120, 126)  # divisible by 8, 7, 12, 9 and similar strides


@dataclass(frozen=True)
class Sizes:
    """Square image sizes at which a backbone runs or fails, among those tried."""

    stride: int
    width: int
    working: tuple[int, ...]
    failing: Mapping[int, str] = field(default_factory=dict)
    uniform: bool = True
    """Whether the stride is equal at all sizes; if not, `stride` is the one at the size nearest to 128."""

    def best(self, near: int = 128) -> int:
        """Return the working side nearest to ``near``."""
        return min(self.working, key=lambda side: (abs(side - near), side))

    def __str__(self) -> str:
        if self.uniform and not self.failing:
            return f"multiples of {self.stride}"
        return ", ".join(map(str, self.working)) or "none"


def working_sizes(
    model_name: str,
    model_kwargs: dict[str, Any] | None = None,
    in_chans: int = 3,
    sides: Sequence[int] = TRIED_SIDES,
) -> Sizes:
    """Try a backbone at its default size, and at the multiples of its stride nearest to ``sides``.

    Raises:
        UsageError: the backbone runs at none of these sizes; the message gives the reason at the first.
    """
    kwargs = dict(model_kwargs or {}) | ({"in_chans": in_chans} if in_chans != 3 else {})
    try:
        shape = without_memory(partial(create, model_name, kwargs))
        return _try_sizes(shape, model_name, kwargs, in_chans, sides)
    except UsageError:  # some models read tensor values, which the meta device does not have
        with torch.random.fork_rng(devices=[]):
            return _try_sizes(create(model_name, kwargs), model_name, kwargs, in_chans, sides)


def _try_sizes(
    model: nn.Module, name: str, kwargs: dict[str, Any], in_chans: int, sides: Sequence[int]
) -> Sizes:
    own = _own_side(model)
    takes = arguments_of(name, model)
    found: dict[int, Features] = {}
    failing: dict[int, str] = {}
    model.eval()

    def at(side: int) -> nn.Module:
        if hasattr(model, "set_input_size"):
            model.set_input_size(img_size=(side, side))  # type: ignore[operator]
            return model
        if "img_size" not in takes:
            return model
        return without_memory(partial(create, name, {**kwargs, "img_size": side})).eval()

    def attempt(side: int) -> None:
        if side in found or side in failing:
            return
        try:
            found[side] = look_at(at(side), name, (side, side), in_chans)[0]
        except (UsageError, *MODEL_ERRORS) as error:
            failing[side] = first_line(error)

    for side in (own, *DIVISIBLE_SIDES):
        if not found:
            attempt(side)
    if not found:
        raise UsageError(failing[own])
    form = next(iter(found.values()))
    failing.clear()
    for side in sides:
        attempt(max(1, round(side / form.stride)) * form.stride)
    if failing:
        attempt(own // 2)
    sizes = Sizes(form.stride, form.width, tuple(sorted(found)), dict(sorted(failing.items())))
    best = found[sizes.best()]
    uniform = len({features.stride for features in found.values()}) == 1
    return replace(sizes, stride=best.stride, width=best.width, uniform=uniform)


def _own_side(model: nn.Module) -> int:
    """Default image size of a model."""
    size = (getattr(model, "default_cfg", None) or {}).get("input_size")
    return int(size[-1]) if size else 128
