"""What a file may say of a model: whose name, and which arguments.

A factory, ``package.module:factory``, is code. One that a file names is imported only where the user gave the
same name, or trusts the code that files name. The arguments that a file gives are plain values of parameters
that the model has, and the model is built without memory first (see `described`).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fastmim.encoders.names import FACTORY, check_loaders, is_custom
from fastmim.errors import UsageError
from fastmim.system.documents import is_plain, shown

MOST_NUMBER = 1 << 16  # of an argument
MOST_CLASSES = 1 << 24
MOST_ENTRIES = 256  # of a list, and letters of a text
MOST_NESTED = 3  # lists inside one another


@dataclass(frozen=True)
class Trust:
    """Which factories may be imported though a file names them."""

    names: frozenset[str] = frozenset()
    """Those that the user gave."""
    everything: bool = False
    """Whether the user trusts the code that files name."""

    @classmethod
    def of(cls, *names: object, everything: bool = False) -> "Trust":
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
        if any(abs(number) > most for number in numbers_in(value)):
            raise UsageError(f"{where}: {name} = {shown(value)} is beyond {most}, more than any backbone has")


def numbers_in(value: Any) -> Iterator[float]:
    """The numbers in a value, and in lists and mappings inside it."""
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, dict):
        yield from numbers_in(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from numbers_in(item)
