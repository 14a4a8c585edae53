"""The model that a file describes, built without memory and within limits: what its weights must fit."""

import contextlib
import dataclasses
import inspect
import typing
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from fastmim.encoders.limits import MOST_BUFFERED, MOST_DESCRIBED, TooLarge, brief, limited
from fastmim.encoders.names import is_custom
from fastmim.encoders.registry import arguments_of, create, is_known
from fastmim.encoders.trust import NOTHING, Trust, check_plain, numbers_in
from fastmim.errors import UsageError
from fastmim.system.documents import shown

LARGE = 1 << 10  # from where a number may make building slow: timm has loops over places of a window
MOST_PARAMETERS = 100_000_000  # that a model may have, whatever its file holds
TIMES_THE_FILE = 64  # what may have been left out of the file: encoder.depth leaves out the last blocks
# What timm's constructors take out of **kwargs by hand, and what it has for all models.
FURTHER_ARGUMENTS = frozenset({"num_classes", "in_chans", "bn_tf", "bn_momentum", "bn_eps"})
ELSEWHERE = frozenset({"self", "args", "kwargs", "cfg", "device", "dtype"})


def most_parameters(numbers: int) -> int:
    """That a model may have whose file holds so many numbers."""
    return MOST_PARAMETERS + TIMES_THE_FILE * numbers


def check_described(
    name: str,
    kwargs: Mapping[str, Any],
    numbers: int,
    where: str,
    trust: Trust = NOTHING,
    setting: str = "model",
) -> nn.Module | None:
    """Build the model that a file describes, without memory; None where somebody's own code cannot.

    Args:
        kwargs: what the file says that builds it.
        numbers: that the file's tensors hold.
        where: the file, in messages.
        setting: where the user would give the name.

    Raises:
        UsageError: it may not be built, or cannot.
    """
    trust.check(name, where, setting)
    if not (is_custom(name) or is_known(name)):
        raise UsageError(f"{where} holds the weights of your own module {shown(name)}: give it as model=")
    check_plain(kwargs, f"{where}: kwargs", is_custom(name))
    with torch.device("meta"):
        try:
            taken = _arguments(name)
            unknown = [argument for argument in kwargs if taken is not None and argument not in taken]
            if unknown:
                raise UsageError(f"{where}: kwargs: {name} takes no {unknown[0]}")
            large = any(
                abs(n) > LARGE for key in kwargs if key != "num_classes" for n in numbers_in(kwargs[key])
            )
            with (
                limited(most_parameters(numbers), MOST_DESCRIBED, MOST_BUFFERED),
                brief() if large else nullcontext(),
            ):
                return create(name, kwargs)
        except TooLarge as error:
            raise UsageError(
                f"{where} describes a model that its {numbers} numbers cannot be of: {error}"
            ) from error
        except (UsageError, NotImplementedError):
            if not is_custom(name):
                raise  # all of timm's are built without memory
            return None  # somebody's own code, which the user trusts, need not know of devices


def _arguments(name: str) -> set[str] | None:
    """What a model may be told by a file; None: anything, as its factory takes any."""
    if is_custom(name):
        parameters = arguments_of(name, nn.Module())
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        return None if open_ended else set(parameters)
    model = create(name, {})
    taken = set(arguments_of(name, model)) | FURTHER_ARGUMENTS
    for cls in type(model).__mro__:
        if issubclass(cls, nn.Module) and "cfg" in inspect.signature(cls.__init__).parameters:
            taken |= _overlaid(cls)
    return taken - ELSEWHERE


def _overlaid(cls: type[nn.Module]) -> set[str]:
    """Fields of the configuration that **kwargs of a constructor are laid over."""
    with contextlib.suppress(NameError, TypeError):
        form = typing.get_type_hints(cls.__init__).get("cfg")
        if isinstance(form, type) and dataclasses.is_dataclass(form):
            return {field.name for field in dataclasses.fields(form)}
    return set()
