"""Flags from dataclasses, parsed by tyro: its errors become one line; stages and mappings are one word."""

import contextlib
import io
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar, get_args

from fastmim.cli.hints import flags_of, hint
from fastmim.errors import UsageError
from fastmim.system.bounds import check_bounds

T = TypeVar("T")
WIDE = "100000"  # columns, so that no line or word of an error message is broken
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
UNKNOWN = "Unrecognized options: "  # tyro's wording
FRAME = "│╭╮╰╯ \t"


def peek(arguments: list[str], *names: str) -> dict[str, str | None]:
    """Read the values of a few flags before the others are parsed, since they decide the others' defaults."""
    import argparse

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in names:
        parser.add_argument(f"--{name}", nargs="?")
    known, _ = parser.parse_known_args(arguments)
    return dict(vars(known))


def asked(arguments: list[str], name: str) -> bool:
    """Return whether a switch is given, before the flags are parsed."""
    return f"--{name}" in arguments or f"--{name.replace('-', '_')}" in arguments


def parse(cls: type[T], arguments: list[str], program: str, default: T) -> T:
    """Parse flags with tyro; its error messages become one line."""
    import tyro

    complaint = _Plain()
    helped = not {"-h", "--help"}.isdisjoint(arguments)
    try:
        with contextlib.redirect_stderr(complaint), contextlib.nullcontext() if helped else _unadorned():
            parsed = tyro.cli(cls, args=arguments, prog=program, default=default, registry=_registry())
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UsageError(_one_line(complaint.getvalue(), arguments, cls, program)) from stop
    check_bounds(parsed)
    return parsed


class _Plain(io.StringIO):
    """A stream that is not a terminal and accepts any character, such as those of tyro's frames."""

    encoding = "utf-8"


@contextlib.contextmanager
def _unadorned() -> Iterator[None]:
    """Make tyro write neither colours nor line breaks, whatever the terminal is."""
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = WIDE
    try:
        with contextlib.redirect_stdout(_Plain()):
            yield
    finally:
        del os.environ["COLUMNS"]
        if columns is not None:
            os.environ["COLUMNS"] = columns


def _one_line(boxed: str, arguments: list[str], form: type, program: str) -> str:
    """Extract the message of tyro's error box, without frame and help text, and add a suggestion."""
    lines = COLOURS.sub("", boxed).splitlines()
    rows = iter([row.strip(FRAME) for row in lines if row.lstrip()[:1] not in "╭╰"])

    def is_rule(row: str) -> bool:
        return set(row) <= set("─-")

    first = next((row for row in rows if not is_rule(row)), "")
    message = " ".join([first, *itertools.takewhile(lambda row: not is_rule(row), rows)]).rstrip(".")
    # Errors of our own dataclasses name their field already.
    message = re.sub(r"^Error parsing (settings[.\w]*|--stages|[A-Z]\w*): ", "", message)
    if not message.startswith(UNKNOWN):
        return message
    meant = hint(arguments, message.removeprefix(UNKNOWN).split(", "), dict(flags_of(form)))
    if meant is None and any(row.startswith("Perhaps you meant") for row in rows):
        meant = f"did you mean {next(rows, '').split(' ')[0].rstrip(',')}?"
    return f"{message}; {meant or f'`{program} --help` lists all options'}"


def _registry() -> Any:
    """Build a tyro registry that reads mappings as JSON and stages as one word."""
    import json

    import tyro

    from fastmim.system.documents import parse_json, shown
    from fastmim.train.stages import StageConfig, parse_stages

    # Mappings as JSON.
    def from_json(words: list[str]) -> dict[str, Any]:
        value = parse_json(words[0], shown(words[0]))
        if not isinstance(value, dict):
            raise ValueError("a JSON object is needed, such as '{\"window_size\": 8}'")
        return value

    # The rules for mappings and stages.
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def mapping(info: tyro.constructors.PrimitiveTypeInfo) -> Any:
        if info.type_origin is not dict:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="JSON",
            instance_from_str=from_json,
            is_instance=lambda value: isinstance(value, dict),
            str_from_instance=lambda value: [json.dumps(value)],
        )

    @registry.primitive_rule
    def stages(info: tyro.constructors.PrimitiveTypeInfo) -> Any:
        if get_args(info.type) != (StageConfig, ...):
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="STAGES",
            instance_from_str=lambda words: parse_stages(words[0]),
            is_instance=lambda value: isinstance(value, tuple),
            str_from_instance=lambda value: [",".join(map(str, value))],
        )

    return registry


def check_place(flag: str, file: Path) -> None:
    """Create the folder of ``file``, before anything is measured for it.

    Raises:
        UsageError: a file cannot be written there.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{flag}: cannot write to the folder {file.parent}: {error.strerror}") from error
    if file.is_dir():
        raise UsageError(f"{flag}: {file} is a folder; give a file in it")
