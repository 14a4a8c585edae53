"""What a file may say of a model: whose name, which arguments, and how large it may become.

A factory, ``package.module:factory``, is code. One that a file names is imported only where the user gave the
same name, or trusts the code that files name. The arguments that a file gives are plain values of parameters
that the model has, and the model is built without memory first.
"""

import contextlib
import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fastmim.encoders.limits import (
    FACTORY,
    MOST_BUFFERED,
    MOST_DESCRIBED,
    TooLarge,
    brief,
    check_loaders,
    limited,
)
from fastmim.encoders.registry import arguments_of, create, is_custom, is_known
from fastmim.errors import UsageError
from fastmim.system.documents import is_plain, shown

MOST_NUMBER = 1 << 16  # of an argument
MOST_CLASSES = 1 << 24
LARGE = 1 << 10  # from where a number may make building slow: timm has loops over places of a window
MOST_ENTRIES = 256  # of a list, and letters of a text
MOST_NESTED = 3  # lists inside one another
MOST_PARAMETERS = 100_000_000  # that a model may have, whatever its file holds
TIMES_THE_FILE = 64  # what may have been left out of the file: encoder.depth leaves out the last blocks
# What timm's constructors take out of **kwargs by hand, and what it has for all models.
FURTHER_ARGUMENTS = frozenset({"num_classes", "in_chans", "bn_tf", "bn_momentum", "bn_eps"})
ELSEWHERE = frozenset({"self", "args", "kwargs", "cfg", "device", "dtype"})


@dataclass(frozen=True)
class Trust:
    """Which factories may be imported though a file names them."""

    names: frozenset[str] = frozenset()
    """Those that the user gave."""
    everything: bool = False
    """Whether the user trusts the code that files name."""

    @classmethod
    def of(cls, *names: str | nn.Module | None, everything: bool = False) -> "Trust":
        """Trust in the factories among what a user gave as models."""
        return cls(frozenset(n for n in names if isinstance(n, str) and is_custom(n)), everything)

    def allows(self, name: str) -> bool:
        """Whether ``name`` is a factory that may be imported."""
        return is_custom(name) and (self.everything or name in self.names)

    def check(self, name: str, where: str, setting: str = "model") -> None:
        """Raise UsageError where ``name`` is a factory that nobody but the file ``where`` has named.

        Args:
            setting: where the user would give the name.
        """
        if not is_custom(name):
            return
        if not FACTORY.fullmatch(name):
            raise UsageError(
                f"{where} names the {setting} {shown(name)}, which is no backbone of timm's and no "
                "package.module:factory"
            )
        if self.allows(name):
            return
        other = f", not {' or '.join(sorted(self.names))}" if self.names else ""
        raise UsageError(
            f"{where} names the factory {name} as {setting}{other}: building it runs its code, and none is "
            f"imported because a file says so; if you trust it, give --{setting} {name}, or --trust-code (in "
            "Python the same name, or trust_code=True)"
        )


NOTHING = Trust()


def check_plain(kwargs: Mapping[str, Any], where: str, custom: bool) -> None:
    """Raise UsageError unless a model's arguments, out of the file ``where``, are plain and bounded."""
    check_loaders(kwargs, f"{where}: ", custom)
    for name, value in kwargs.items():
        most = MOST_CLASSES if name == "num_classes" else MOST_NUMBER
        if not re.fullmatch(r"[A-Za-z_]\w{0,63}", str(name)):
            raise UsageError(f"{where}: {shown(name)} is no name of an argument")
        if not is_plain(value, MOST_ENTRIES, MOST_NESTED):
            raise UsageError(
                f"{where}: {name} = {shown(value)} must be a finite number, a short text, or a short list"
            )
        if any(abs(number) > most for number in _numbers(value)):
            raise UsageError(f"{where}: {name} = {shown(value)} is beyond {most}, more than any backbone has")


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
                abs(n) > LARGE for key in kwargs if key != "num_classes" for n in _numbers(kwargs[key])
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


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, dict):
        yield from _numbers(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item)


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
