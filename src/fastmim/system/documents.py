"""Read untrusted JSON and YAML: limited in size and depth, and checked against a schema.

Each error is a `UsageError` that names the file and, if there is one, the field and its value.
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
MOST_DEPTH = 32  # of nested mappings and lists
MOST_SCALAR = 10_000  # characters of one value in YAML
MOST_BITS = 1 << 10  # of an integer in a message
SHOWN = 60  # characters of a value in a message
# pydantic's names of bounds -> description, and whether a value is within.
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


# Strict types for JSON, since pydantic would also accept "5" or true as 5.
Whole = Annotated[int, Field(strict=True)]
Count = Annotated[int, Field(strict=True, ge=0)]
Finite = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Truth = Annotated[bool, Field(strict=True)]
BareName = Annotated[str, AfterValidator(_bare)]
"""File name without a folder, so that it cannot point elsewhere."""


def read_text(path: Path, most: int, pipe: bool = False) -> str:
    """Read a regular file as UTF-8 text; with ``pipe``, any file.

    Raises:
        OSError: the file cannot be read.
        UsageError: the file is not regular, has more than ``most`` bytes, or is not UTF-8.
    """
    if not pipe and path.exists() and not path.is_file():
        raise UsageError(f"{path} is not a regular file")
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise UsageError(f"{path} has more than {most >> 20} MiB, the limit for such files")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises OSError, or UsageError if it is not JSON."""
    return parse_json(read_text(path, MOST_JSON), str(path))


def parse_json(text: str, where: str) -> Any:
    """Parse JSON text; ``where`` names its file in messages. Raises UsageError."""
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
    """Read the settings in a YAML file. Raises UsageError if the file is missing or not a mapping.

    Args:
        pipe: allow a pipe, such as ``<(fastmim recipes NAME)``.
    """
    try:
        return parse_yaml(read_text(Path(path), MOST_YAML, pipe), str(path))
    except OSError as error:
        raise UsageError(f"config: {path}: {error.strerror}") from error
    except UsageError as error:
        raise UsageError(f"config: {error}") from error


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """Parse YAML text that is a mapping without anchors and aliases. Raises UsageError."""
    try:
        values = yaml.load(text, _PlainLoader)  # noqa: S506 - a SafeLoader
    except RecursionError as error:
        raise UsageError(f"{where}: {_too_deep()}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an invalid number or date
        raise UsageError(f"{where} is not YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"{where} must hold names and values, not a {type(values).__name__}")
    return values


def checked(form: type[T], values: Any, where: str) -> T:
    """Convert ``values`` to ``form``, a type that pydantic supports. Lists become tuples where it has tuples.

    Raises:
        UsageError: the values do not match; the message names the first wrong field.
    """
    try:
        return TypeAdapter(form).validate_python(values)
    except ValidationError as error:
        raise UsageError(f"{where}: {complaint(error)}") from error


def complaint(error: ValidationError) -> str:
    """Describe the first wrong field: its name, value and error."""
    first = error.errors()[0]
    kinds = (
        "tuple[",
        "int",
        "float",
        "list[",
        "function-",
        "constrained-",
    )  # members of a union, which pydantic adds to the location
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
    """Describe the bound that a value violates."""
    number = int(limit) if limit == int(limit) else limit  # pydantic reports a field's bound 1 as 1.0
    return f"{name} = {shown(value)} must be {BOUNDS[bound][0]} {number:,}"


def shown(value: Any) -> str:
    """Format a value for a message: as Python's repr, but short."""
    short = _Short()
    short.maxlevel, short.maxstring, short.maxother, short.maxlong = 2, SHOWN, SHOWN, SHOWN
    return short.repr(value)


class _Short(reprlib.Repr):
    def repr_int(self, x: int, level: int) -> str:
        if x.bit_length() > MOST_BITS:  # Python refuses to print more than 4300 digits
            return f"an integer of {x.bit_length()} bits"
        return super().repr_int(x, level)


def is_plain(value: Any, longest: int, depth: int) -> bool:
    """Return whether a value is a finite number, a short text, a bool or None, or a small nest of these."""
    if isinstance(value, bool) or value is None:
        return True
    if isinstance(value, int | float):
        return -math.inf < value < math.inf  # also for integers too large for a float
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
        raise ValueError(f"{shown(twice)} appears twice")
    return found


def _deeper_than(value: Any, depth: int) -> bool:
    """Return whether mappings and lists are nested more than ``depth`` deep; level by level, no recursion."""
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
    return f"more than {MOST_DEPTH} nested lists and mappings"


class _PlainLoader(yaml.SafeLoader):
    """YAML loader that rejects anchors and aliases, a few lines of which can expand to gigabytes."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise _fault(event, "anchors and aliases (&name, *name) are not supported: write the value out")
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
                    raise _fault(name, f"{shown(name.value)} appears twice")
                seen.add((name.tag, name.value))
        return super().construct_mapping(node, deep)


def _fault(place: Any, message: str) -> yaml.YAMLError:
    return yaml.MarkedYAMLError(problem=message, problem_mark=place.start_mark)
