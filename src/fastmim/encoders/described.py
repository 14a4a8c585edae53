"""Build the model that a file describes on the meta device, within limits, to check the file's weights."""

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

LARGE = 1 << 10  # larger arguments may make building slow: timm has loops over the positions of a window
MOST_PARAMETERS = 100_000_000  # allowed for any model, however few its file holds
TIMES_THE_FILE = 64  # model over file: a file can lack parameters, as encoder.depth omits the last blocks
# Arguments that timm's constructors read from **kwargs, and those that timm defines for all models.
FURTHER_ARGUMENTS = frozenset({"num_classes", "in_chans", "bn_tf", "bn_momentum", "bn_eps"})
ELSEWHERE = frozenset({"self", "args", "kwargs", "cfg", "device", "dtype"})


def most_parameters(numbers: int) -> int:
    """Limit of parameters for a model whose file holds ``numbers`` tensor elements."""
    return MOST_PARAMETERS + TIMES_THE_FILE * numbers


def check_described(
    name: str,
    kwargs: Mapping[str, Any],
    numbers: int,
    where: str,
    trust: Trust = NOTHING,
    setting: str = "model",
) -> nn.Module | None:
    """Build the model that a file describes on the meta device; None if custom code does not support that.

    Args:
        name: the model's name in the file.
        kwargs: the constructor arguments in the file.
        numbers: elements of all tensors in the file.
        where: the file, for error messages.
        trust: factories that may be imported.
        setting: the setting by which the user would give the name.

    Raises:
        UsageError: the model is not allowed, or cannot be built.
    """
    # Check the name and the values of the arguments, without building anything.
    trust.check(name, where, setting)
    if not (is_custom(name) or is_known(name)):
        raise UsageError(f"{where} holds the weights of a module, {shown(name)}: pass it as model=")
    check_plain(kwargs, f"{where}: kwargs", is_custom(name))
    # Build within limits; a large argument also limits the function calls.
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
                f"{where} describes a model that does not match its {numbers} numbers: {error}"
            ) from error
        except (UsageError, NotImplementedError):
            if not is_custom(name):
                raise  # every timm model can be built on the meta device
            return None  # trusted custom code may not support the meta device


def _arguments(name: str) -> set[str] | None:
    """Arguments that a file may give for a model; None: any, because its factory accepts any."""
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
    """Fields of the configuration class that a constructor's **kwargs override."""
    with contextlib.suppress(NameError, TypeError):
        form = typing.get_type_hints(cls.__init__).get("cfg")
        if isinstance(form, type) and dataclasses.is_dataclass(form):
            return {field.name for field in dataclasses.fields(form)}
    return set()
