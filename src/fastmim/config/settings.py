"""Read, merge and write settings: frozen dataclasses from flags, YAML or Python."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Any, TypeVar, get_args, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from fastmim.errors import UsageError
from fastmim.system.documents import complaint, shown
from fastmim.train.stages import StageConfig

T = TypeVar("T")
MOST_NUMBER = 1 << 53


def build(cls: type[T], settings: Mapping[str, Any], where: str = "") -> T:
    """Build a configuration from plain values; dotted names (``{"mask.ratio": 0.6}``) are allowed.

    Raises:
        UsageError: a key is unknown (the message suggests the nearest one), or a value has the wrong type.
    """
    nested = _nest(settings)
    _check_keys(cls, nested, where)
    try:
        return TypeAdapter(cls).validate_python(nested)
    except ValidationError as error:
        cause = error.errors()[0].get("ctx", {}).get("error")
        told = cause if isinstance(cause, UsageError) else complaint(error)
        raise UsageError(f"{where}{told}") from error


def merge(base: T, settings: Mapping[str, Any], where: str = "") -> T:
    """Return ``base`` with ``settings`` (nested or dotted) merged over it.

    Stages replace the single size and length of ``base``.
    """
    values: dict[str, Any] = asdict(base)  # type: ignore[call-overload]
    if settings.get("stages"):
        values |= {"image_size": None, "epochs": None, "steps": None}
    return build(type(base), _overlay(values, _nest(settings)), where)


def to_yaml(config: Any) -> str:
    """Convert a configuration to YAML, from which `read_yaml` and `merge` restore it."""
    return yaml.safe_dump(_plain(asdict(config)), sort_keys=False, default_flow_style=None, width=100)


def differences(old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
    """Return the dotted names of settings that differ, with both values."""
    found: dict[str, tuple[Any, Any]] = {}
    for item in fields(old):
        a, b = getattr(old, item.name), getattr(new, item.name)
        if is_dataclass(a):
            found |= {f"{item.name}.{name}": pair for name, pair in differences(a, b).items()}
        elif a != b:
            found[item.name] = (a, b)
    return found


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten settings, nested or dotted, to dotted names; model_kwargs remains one setting."""
    found: dict[str, Any] = {}
    for name, value in _nest(settings).items():
        if isinstance(value, Mapping) and not name.endswith("model_kwargs"):
            found |= {f"{name}.{inner}": item for inner, item in flat(value).items()}
        else:
            found[name] = value
    return found


def check_numbers(value: Any, name: str = "") -> None:
    """Raise UsageError if a number in a configuration is NaN, infinite, or larger than any setting can be."""
    if is_dataclass(value):
        for item in fields(value):
            check_numbers(getattr(value, item.name), f"{name}.{item.name}" if name else item.name)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            check_numbers(inner, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for inner in value:
            check_numbers(inner, name)
    elif isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{name} = {value}: a finite number is needed")
    elif isinstance(value, int) and abs(value) > MOST_NUMBER:
        raise UsageError(f"{name} = {shown(value)}: too large for a setting")


def _nest(settings: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in settings.items():
        if is_dataclass(value) and not isinstance(value, type):
            value = asdict(value)
        head, _, rest = str(name).partition(".")
        nested = _overlay(nested, {head: _nest({rest: value}) if rest else value})
    return nested


def _overlay(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for name, value in over.items():
        old = result.get(name)
        deep = isinstance(value, Mapping) and isinstance(old, Mapping) and name != "model_kwargs"
        result[name] = _overlay(old, value) if deep else value  # type: ignore[arg-type]
    return result


def _check_keys(cls: Any, values: Mapping[str, Any], where: str, prefix: str = "") -> None:
    hints = get_type_hints(cls)
    for name, value in values.items():
        if name not in hints:
            close = difflib.get_close_matches(str(name), hints, n=1)
            hint = f"did you mean {prefix}{close[0]}?" if close else f"known: {', '.join(hints)}"
            raise UsageError(f"{where}unknown setting {prefix}{name}; {hint}")
        if is_dataclass(hints[name]):
            if not isinstance(value, Mapping):
                inner = ", ".join(item.name for item in fields(hints[name]))
                raise UsageError(f"{where}{prefix}{name} = {value!r} must hold settings by name: {inner}")
            _check_keys(hints[name], value, where, f"{prefix}{name}.")
        elif isinstance(value, bool) and bool not in (hints[name], *get_args(hints[name])):
            raise UsageError(f"{where}{prefix}{name} = {str(value).lower()}: true and false are not allowed")
        elif name == "stages" and isinstance(value, list | tuple):
            for number, stage in enumerate(value):
                if isinstance(stage, Mapping):
                    _check_keys(StageConfig, stage, where, f"{prefix}{name}.{number}.")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
