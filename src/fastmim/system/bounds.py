"""Bounds of settings, declared in the types of a dataclass's fields: ``Annotated[int, Field(ge=1)]``.

Settings are plain dataclasses that check their bounds when they are constructed. pydantic's dataclasses would
raise its own error then, not a one-line UsageError, and convert values to other types.
"""

from collections.abc import Iterator
from functools import cache
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pydantic import Field

from fastmim.errors import UsageError
from fastmim.system.documents import BOUNDS, out_of_bounds

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(gt=0, lt=1)]
"""A share between 0 and 1, both excluded."""
Chance = Annotated[float, Field(ge=0, le=1)]


def check_bounds(config: Any, group: str = "") -> None:
    """Check the fields of a dataclass against the bounds in their types; called in its ``__post_init__``.

    Values of another type are left to the reader of the settings (`config.build`, or the command line).

    Args:
        group: dotted name of the group that ``config`` is, for messages.

    Raises:
        UsageError: a number is out of bounds.
    """
    for name, form in _hints(config.__class__).items():
        _check(getattr(config, name), form, f"{group}.{name}" if group else name)


@cache
def _hints(cls: Any) -> dict[str, Any]:
    return {
        name: form for name, form in get_type_hints(cls, include_extras=True).items() if _is_bounded(form)
    }


def _is_bounded(form: Any) -> bool:
    return any(True for _ in _marks(form)) or any(_is_bounded(part) for part in get_args(form))


def _marks(form: Any) -> Iterator[Any]:
    """Yield the bounds of the type itself, without those of its parts."""
    for mark in get_args(form)[1:] if get_origin(form) is Annotated else ():
        for single in (mark, *getattr(mark, "metadata", ())):
            if any(hasattr(single, name) for name in BOUNDS):
                yield single


def _check(value: Any, form: Any, name: str) -> None:
    if get_origin(form) is Annotated:
        if isinstance(value, int | float) and not isinstance(value, bool):
            for mark in _marks(form):
                for bound, (_, holds) in BOUNDS.items():
                    limit = getattr(mark, bound, None)
                    if limit is not None and not holds(value, limit):
                        raise UsageError(out_of_bounds(name, value, bound, limit))
        _check(value, get_args(form)[0], name)
    elif get_origin(form) in (Union, UnionType):
        for part in get_args(form):
            _check(value, part, name)
    elif get_origin(form) is tuple and isinstance(value, tuple):
        parts = get_args(form)
        if parts[-1] is Ellipsis:
            parts = parts[:1] * len(value)
        for place, (item, part) in enumerate(zip(value, parts, strict=False)):
            _check(item, part, f"{name}.{place}")
