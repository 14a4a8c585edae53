"""JSON and YAML that somebody else may have written: bounded in size and depth, and checked by a schema.

Every fault is one `UsageError` that names the file, and where there is one the field and its value.
"""

import json
import math
import operator
import reprlib
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from fastmim.errors import UsageError

T = TypeVar("T")

MOST_JSON = 256 << 20  # bytes; the manifest of a pack of 100 M images has 40 MB
MOST_YAML = 1 << 20
MOST_DEPTH = 32  # mappings and lists inside one another
MOST_SCALAR = 10_000  # characters of one value in YAML
MOST_BITS = 1 << 10  # of an integer in a message
SHOWN = 60  # characters of a value in a message
# Bounds by pydantic's names: in words, and whether a value is within.
BOUNDS: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "ge": ("at least", operator.ge),
    "gt": ("above", operator.gt),
    "le": ("at most", operator.le),
    "lt": ("below", operator.lt),
}


def _bare(name: str) -> str:
    if name in ("", ".", "..") or any(sign in name for sign in "/\\\0:"):
        raise ValueError("must be the bare name of a file in the same folder")
    return name


# Of JSON: exactly of these types, where pydantic would also take "5" or true for 5.
Whole = Annotated[int, Field(strict=True)]
Count = Annotated[int, Field(strict=True, ge=0)]
Finite = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Truth = Annotated[bool, Field(strict=True)]
BareName = Annotated[str, AfterValidator(_bare)]
"""Of a file: with no folder in it, so that it cannot lead elsewhere."""


def read_text(path: Path, most: int, pipe: bool = False) -> str:
    """The text of a regular file, or where ``pipe`` of any.

    Raises:
        OSError: it cannot be read.
        UsageError: it is not a regular file, too large, or not UTF-8.
    """
    if not pipe and path.exists() and not path.is_file():
        raise UsageError(f"{path} is no regular file")
    with open(path, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise UsageError(f"{path} has more than {most >> 20} MiB, which no such file of fastmim has")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises OSError, or UsageError where it is no JSON."""
    return parse_json(read_text(path, MOST_JSON), str(path))


def parse_json(text: str, where: str) -> Any:
    """What JSON text holds; ``where`` is its file in messages. Raises UsageError."""
    try:
        values = json.loads(text, object_pairs_hook=_mapping)
    except RecursionError as error:
        raise UsageError(f"{where}: {_too_deep()}") from error
    except ValueError as error:
        raise UsageError(f"{where} is not JSON: {error}") from error
    if _deeper_than(values, MOST_DEPTH):
        raise UsageError(f"{where}: {_too_deep()}")
    return values


def read_yaml(path: str | Path, pipe: bool = False) -> dict[str, Any]:
    """The settings of a YAML file. Raises UsageError where it is missing or no mapping.

    Args:
        pipe: it may be one, as it is where somebody gives ``<(fastmim recipes NAME)``.
    """
    try:
        return parse_yaml(read_text(Path(path), MOST_YAML, pipe), str(path))
    except OSError as error:
        raise UsageError(f"config: {path}: {error.strerror}") from error
    except UsageError as error:
        raise UsageError(f"config: {error}") from error


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """The names and values of YAML text, in which no value refers to another. Raises UsageError."""
    try:
        values = yaml.load(text, _PlainLoader)
    except RecursionError as error:
        raise UsageError(f"{where}: {_too_deep()}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a number or date of its own making
        raise UsageError(f"{where} is not YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"{where} must hold names and values, not a {type(values).__name__}")
    return values


def checked(form: type[T], values: Any, where: str) -> T:
    """``values`` as ``form``, a type that pydantic knows. Lists become tuples where it has those.

    Raises:
        UsageError: they are not of that form; the first field that is wrong is named.
    """
    try:
        return TypeAdapter(form).validate_python(values)
    except ValidationError as error:
        raise UsageError(f"{where}: {complaint(error)}") from error


def complaint(error: ValidationError) -> str:
    """Name, value and fault of the first field that is wrong."""
    first = error.errors()[0]
    kinds = (
        "tuple[",
        "int",
        "float",
        "list[",
        "function-",
        "constrained-",
    )  # of a union, which pydantic names
    name = ".".join(str(part) for part in first["loc"] if not str(part).startswith(kinds))
    fault = str(first["msg"]).removeprefix("Value error, ")
    fault = (fault[:1].lower() + fault[1:]).replace("tuple", "list")  # as JSON and YAML call it
    if first["type"] == "missing":
        return f"{name} is missing"
    for bound in BOUNDS:
        if name and bound in first.get("ctx", {}):
            return out_of_bounds(name, first["input"], bound, first["ctx"][bound])
    if first["type"] in ("dataclass_type", "model_type", "dict_type"):
        fault = "must hold names and values"
    return f"{name} = {shown(first['input'])}: {fault}" if name else f"{shown(first['input'])}: {fault}"


def out_of_bounds(name: str, value: Any, bound: str, limit: float) -> str:
    """The line that says which bound a value breaks."""
    number = int(limit) if limit == int(limit) else limit  # pydantic says 1.0 of the 1 that stands at a field
    return f"{name} = {shown(value)} must be {BOUNDS[bound][0]} {number:,}"


def shown(value: Any) -> str:
    """A value in a message: as Python writes it, but short."""
    short = _Short()
    short.maxlevel, short.maxstring, short.maxother, short.maxlong = 2, SHOWN, SHOWN, SHOWN
    return short.repr(value)


class _Short(reprlib.Repr):
    def repr_int(self, x: int, level: int) -> str:
        if x.bit_length() > MOST_BITS:  # Python writes none of more than 4300 digits
            return f"an integer of {x.bit_length()} bits"
        return super().repr_int(x, level)


def is_plain(value: Any, longest: int, depth: int) -> bool:
    """Whether a value is a finite number, a short text, a truth value or nothing, or a few of them."""
    if isinstance(value, bool) or value is None:
        return True
    if isinstance(value, int | float):
        return -math.inf < value < math.inf  # of an integer of any length, too
    if isinstance(value, str):
        return len(value) <= longest
    if depth == 0 or not isinstance(value, list | tuple | dict) or len(value) > longest:
        return False
    if isinstance(value, dict):
        if not all(isinstance(name, str) and len(name) <= longest for name in value):
            return False
        value = list(value.values())
    return all(is_plain(item, longest, depth - 1) for item in value)


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"{shown(twice)} stands there twice")
    return found


def _deeper_than(value: Any, depth: int) -> bool:
    """Whether more than ``depth`` mappings and lists lie inside one another; level by level, no recursion."""
    level = [value]
    for _ in range(depth):
        level = [
            item
            for holder in level
            if isinstance(holder, dict | list)
            for item in (holder.values() if isinstance(holder, dict) else holder)
            if isinstance(item, dict | list)
        ]
        if not level:
            return False
    return True


def _too_deep() -> str:
    return f"more than {MOST_DEPTH} lists and mappings lie inside one another"


class _PlainLoader(yaml.SafeLoader):
    """YAML that says what it means: no anchors and aliases, which a few lines of can stand for gigabytes."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise _fault(event, "anchors and aliases (&name, *name) are not read: write the value out")
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > MOST_SCALAR:
            raise _fault(event, f"a value has more than {MOST_SCALAR} characters")
        self.depth += 1
        if self.depth > MOST_DEPTH:
            raise _fault(event, _too_deep())
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[tuple[str, Any]] = set()
        for name, _ in node.value:
            if isinstance(name, yaml.ScalarNode):
                if (name.tag, name.value) in seen:
                    raise _fault(name, f"{shown(name.value)} stands there twice")
                seen.add((name.tag, name.value))
        return super().construct_mapping(node, deep)


def _fault(place: Any, message: str) -> yaml.YAMLError:
    return yaml.MarkedYAMLError(problem=message, problem_mark=place.start_mark)
