"""Restrict the model names and arguments that are accepted from a file.

A factory, ``package.module:factory``, is code. A factory that a file names is imported only if the user gave
the same name, or trusts code that files name. The arguments that a file gives must be plain values of
parameters that the model has, and the model is first built on the meta device (see `described`).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fastmim.encoders.names import FACTORY, check_loaders, is_custom
from fastmim.errors import UsageError
from fastmim.system.documents import is_plain, shown

MOST_NUMBER = 1 << 16  # largest numeric argument
MOST_CLASSES = 1 << 24
MOST_ENTRIES = 256  # entries of a list, and characters of a text
MOST_NESTED = 3  # depth of nested lists


@dataclass(frozen=True)
class Trust:
    """Factories that may be imported when a file names them."""

    names: frozenset[str] = frozenset()
    """Factories that the user gave."""
    everything: bool = False
    """Whether the user trusts all code that files name."""

    @classmethod
    def of(cls, *names: object, everything: bool = False) -> "Trust":
        """Trust the factories among ``names``, the model names that the user gave."""
        return cls(frozenset(n for n in names if isinstance(n, str) and is_custom(n)), everything)

    def allows(self, name: str) -> bool:
        """Whether ``name`` is a factory that may be imported."""
        return is_custom(name) and (self.everything or name in self.names)

    def check(self, name: str, where: str, setting: str = "model") -> None:
        """Raise UsageError if ``name`` is a factory that only the file ``where`` names.

        Args:
            name: name of the model in the file.
            where: the file, for the error message.
            setting: the setting by which the user would give the name.
        """
        if not is_custom(name):
            return
        if not FACTORY.fullmatch(name):
            raise UsageError(
                f"{where} names the {setting} {shown(name)}, which is neither a timm backbone nor a "
                "package.module:factory"
            )
        if self.allows(name):
            return
        other = f", not {' or '.join(sorted(self.names))}" if self.names else ""
        raise UsageError(
            f"{where} names the factory {name} as {setting}{other}: building it runs its code, so it is "
            f"not imported unless allowed; if you trust it, give --{setting} {name}, or --trust-code (in "
            "Python the same name, or trust_code=True)"
        )


NOTHING = Trust()


def check_plain(kwargs: Mapping[str, Any], where: str, custom: bool) -> None:
    """Raise UsageError unless a model's arguments from the file ``where`` are plain and bounded."""
    check_loaders(kwargs, f"{where}: ", custom)
    for name, value in kwargs.items():
        most = MOST_CLASSES if name == "num_classes" else MOST_NUMBER
        if not re.fullmatch(r"[A-Za-z_]\w{0,63}", str(name)):
            raise UsageError(f"{where}: {shown(name)} is not a name of an argument")
        if not is_plain(value, MOST_ENTRIES, MOST_NESTED):
            raise UsageError(
                f"{where}: {name} = {shown(value)} must be a finite number, a short text, or a short list"
            )
        if any(abs(number) > most for number in numbers_in(value)):
            raise UsageError(f"{where}: {name} = {shown(value)} is beyond {most}, more than any backbone has")


def numbers_in(value: Any) -> Iterator[float]:
    """Yield the numbers in a value, including nested lists and mappings."""
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, dict):
        yield from numbers_in(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from numbers_in(item)
