"""Bounds stand in types: what is out of them is one line, in Python, in YAML and as a flag."""

from dataclasses import dataclass, replace
from typing import Annotated, Any

import pytest
from pydantic import Field

from fastmim.cli.flags import parse
from fastmim.config import build
from fastmim.errors import UsageError
from fastmim.system.bounds import NonNegativeInt, PositiveFloat, PositiveInt, Share, check_bounds


@dataclass(frozen=True)
class Inner:
    rates: tuple[Share, Share] = (0.5, 0.5)
    layers: tuple[NonNegativeInt, ...] = ()

    def __post_init__(self) -> None:
        check_bounds(self, "inner")


@dataclass(frozen=True)
class Outer:
    steps: PositiveInt | None = None
    rate: PositiveFloat = 1.0
    depth: Annotated[int, Field(ge=1, le=5000)] = 1
    size: PositiveInt | tuple[PositiveInt, PositiveInt] = 2
    inner: Inner = Inner()

    def __post_init__(self) -> None:
        check_bounds(self)


BROKEN: dict[str, dict[str, Any]] = {
    "steps = 0 must be at least 1": {"steps": 0},
    "rate = 0.0 must be above 0": {"rate": 0.0},
    "rate = nan must be above 0": {"rate": float("nan")},
    "depth = 5001 must be at most 5,000": {"depth": 5001},
    "size = -1 must be at least 1": {"size": -1},
}


@pytest.mark.parametrize("line", BROKEN)
def test_the_same_line_in_python_and_from_plain_values_and_flags(line):
    with pytest.raises(UsageError) as made:
        Outer(**BROKEN[line])
    assert str(made.value) == line
    with pytest.raises(UsageError) as changed:
        replace(Outer(), **BROKEN[line])
    assert str(changed.value) == line
    with pytest.raises(UsageError) as read:
        build(Outer, BROKEN[line])
    assert line in str(read.value)
    ((name, value),) = BROKEN[line].items()
    with pytest.raises(UsageError) as parsed:
        parse(Outer, [f"--{name}", str(value)], "program", Outer())
    assert str(parsed.value) == line


def test_places_of_a_tuple_have_their_bounds():
    with pytest.raises(UsageError, match=r"^inner\.rates\.1 = 1\.5 must be below 1$"):
        Inner(rates=(0.5, 1.5))
    with pytest.raises(UsageError, match=r"^inner\.layers\.2 = -1 must be at least 0$"):
        Inner(layers=(0, 1, -1))
    with pytest.raises(UsageError, match=r"^inner\.rates\.0 = 0 must be above 0$"):
        build(Outer, {"inner": {"rates": [0, 0.5]}})


def test_what_is_within_bounds_stays_as_it_is():
    outer = Outer(steps=1, rate=1e-9, depth=5000, size=(1, 1), inner=Inner((0.1, 0.9), (0,)))
    assert build(Outer, {"steps": 1, "rate": 1e-9, "depth": 5000, "size": [1, 1]}) == replace(
        outer, inner=Inner()
    )
    assert Outer(steps=None).steps is None
