"""List the backbones that can be pre-trained, with their size, stride and working image sizes."""

import fnmatch
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm

from fastmim.encoders.levels import parameter_levels
from fastmim.encoders.registry import create, without_memory
from fastmim.encoders.sizes import Sizes, working_sizes
from fastmim.errors import UsageError
from fastmim.system.processes import in_processes

LEAST_SHARED = 4  # number of names from which worker processes save time


@dataclass(frozen=True)
class Backbone:
    """Properties of a backbone that are known without training it."""

    name: str
    family: str
    """Module of timm (or of this package) that defines the backbone."""
    parameters: float
    """Parameters in millions, without the classifier."""
    sizes: Sizes | None
    """Working image sizes; None: the backbone works at none of the sizes tried."""
    reason: str = ""
    levels: int = 0
    """Levels of learning rates under layer decay: stem, blocks, head; 0: not determined."""


def names_like(pattern: str | None) -> list[str]:
    """List all known names, or those that match a word or a pattern (``swin*``)."""
    names: list[str] = timm.list_models()
    if not pattern:
        return names
    wild = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    found = fnmatch.filter(names, wild)
    if not found:
        raise UsageError(f"backbones: no name matches {pattern!r}; try a part, such as 'swin' or 'resnet*d'")
    return found


def family_of(name: str) -> str:
    """Name of the module that defines a model's constructor."""
    return str(timm.model_entrypoint(name).__module__).rpartition(".")[2]


def parameters_of(name: str, model_kwargs: dict[str, Any] | None = None) -> int:
    """Count the parameters of a backbone without its classifier."""
    return sum(p.numel() for p in without_memory(partial(create, name, model_kwargs or {})).parameters())


def levels_of(name: str, model_kwargs: dict[str, Any] | None = None) -> int:
    """Count the levels of learning rates that layer decay has in fine-tuning."""
    kwargs = {**(model_kwargs or {}), "num_classes": 2}
    levels = parameter_levels(without_memory(partial(create, name, kwargs)))
    return max(levels.values()) + 1 if levels else 0


def look_up(name: str, model_kwargs: dict[str, Any] | None = None) -> Backbone:
    """Try a backbone at several sizes, without memory and arithmetic where possible."""
    family = family_of(name)
    try:
        parameters = parameters_of(name, model_kwargs) / 1e6
    except UsageError as error:
        return Backbone(name, family, float("nan"), None, str(error))
    try:
        sizes = working_sizes(name, model_kwargs)
        return Backbone(name, family, parameters, sizes, levels=levels_of(name, model_kwargs))
    except UsageError as error:
        return Backbone(name, family, parameters, None, str(error))


def smallest_of_each_family(names: Sequence[str], processes: int) -> list[str]:
    """Return the name with the fewest parameters of each family."""
    families: dict[str, list[tuple[int, str]]] = {}
    for name, parameters in zip(names, each(parameters_of, names, processes), strict=True):
        families.setdefault(family_of(name), []).append((parameters, name))
    return [min(members)[1] for _, members in sorted(families.items())]


def each(work: Callable[[str], Any], names: Sequence[str], processes: int) -> Iterator[Any]:
    """Yield ``work(name)`` for each name in order, computed in up to ``processes`` worker processes."""
    workers = processes if len(names) >= LEAST_SHARED else 1
    for _, found in in_processes(work, (), names, workers, ordered=True, terminate=True):
        yield found
