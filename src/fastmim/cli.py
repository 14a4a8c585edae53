"""The command `fastmim VERB`: flags from the dataclasses of the library, errors as one line."""

import contextlib
import io
import itertools
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastmim import __version__
from fastmim.errors import FastmimError, UsageError

T = TypeVar("T")

VERBS = {
    "pretrain": "pre-train a backbone on unlabelled images",
    "recipes": "list the recipes, or print one as YAML",
}

USAGE = """usage: fastmim VERB [options]

Self-supervised pre-training of any vision backbone, by masked image modelling
on low-resolution images.

verbs:
{verbs}

options:
  -h, --help     this text; `fastmim VERB --help` explains a verb
  --version      the version
  --debug        after any verb: show the traceback of an error

examples:
  fastmim pretrain --data demo:photos --out runs/demo --steps 100
  fastmim pretrain --data photos/ --out runs/swin --model swin_tiny_patch4_window7_224
  fastmim pretrain --out runs/swin --resume

exit codes: 0 done, 1 a run failed, 2 wrong usage, 130 and 143 stopped by Ctrl-C
or SIGTERM (a checkpoint is written: go on with --resume)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        return _dispatch(arguments)
    except FastmimError as error:
        return _fail(str(error), error.exit_code, debug)
    except KeyboardInterrupt:
        return _fail("interrupted", 130, debug)
    except BrokenPipeError:
        return 1
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        message = f"unexpected {type(error).__name__}: {lines[0]} (--debug shows where)"
        return _fail(message, 1, debug)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        width = max(map(len, VERBS)) + 2
        print(USAGE.format(verbs="\n".join(f"  {verb:<{width}} {what}" for verb, what in VERBS.items())))
        return 0 if arguments else 2
    if arguments[0] in ("--version", "-V"):
        print(f"fastmim {__version__}")
        return 0
    verbs: dict[str, Callable[[list[str]], int]] = {"pretrain": _pretrain, "recipes": _recipes}
    if arguments[0] not in verbs:
        raise UsageError(f"there is no verb {arguments[0]!r}; there are: {', '.join(VERBS)}")
    return verbs[arguments[0]](arguments[1:])


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"fastmim: {' '.join(message.split())}", file=sys.stderr)
    return code


def _pretrain(arguments: list[str]) -> int:
    import tyro

    from fastmim.config import PretrainConfig
    from fastmim.pretraining import base_config, run_pretraining

    @dataclass(frozen=True)
    class Command:
        settings: Annotated[PretrainConfig, tyro.conf.arg(name="")]
        config: str | None = None
        """YAML file with settings; flags win over it. A run's own config.yaml repeats the run."""
        recipe: str | None = None
        """Recipe to start from; `fastmim recipes` lists them."""
        resume: bool = False
        """Go on with the run in --out, if there is one."""
        overwrite: bool = False
        """Replace the run in --out."""

    given = _peek(arguments, "config", "recipe", "out")
    resumed = given["out"] if "--resume" in arguments else None
    base = base_config(given["config"], given["recipe"], resumed)
    command = _parse(Command, arguments, "fastmim pretrain", Command(base))
    result = run_pretraining(command.settings, command.resume, command.overwrite)
    return 128 + result.stopped_by if result.stopped_by is not None and not result.complete else 0


def _recipes(arguments: list[str]) -> int:
    from fastmim.config import to_yaml
    from fastmim.recipes import RECIPES, find_recipe

    if any(argument in ("-h", "--help") for argument in arguments):
        print("usage: fastmim recipes [NAME]\n\nList the recipes, or print the settings of one as YAML.")
        return 0
    if len(arguments) > 1:
        raise UsageError(f"recipes takes one name at most, not {len(arguments)}")
    if arguments:
        print(to_yaml(find_recipe(arguments[0])), end="")
        return 0
    width = max(map(len, RECIPES)) + 2
    for name, recipe in RECIPES.items():
        print(f"{name:<{width}}{(recipe.__doc__ or '').strip()}")
    return 0


def _peek(arguments: list[str], *names: str) -> dict[str, str | None]:
    """Values of a few flags, read before the rest can be parsed: they decide the others' defaults."""
    import argparse

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in names:
        parser.add_argument(f"--{name}", nargs="?")
    known, _ = parser.parse_known_args(arguments)
    return dict(vars(known))


def _parse(cls: type[T], arguments: list[str], program: str, default: T) -> T:
    """Parse flags with tyro; its complaints become one line."""
    import tyro

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(cls, args=arguments, prog=program, default=default, registry=_registry())
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UsageError(_one_line(complaint.getvalue())) from stop


def _one_line(boxed: str) -> str:
    """The message of tyro's error box, and the flag it suggests, without frame and help text."""
    rows = iter([row.strip("│╭╮╰╯ \t") for row in boxed.splitlines()[1:]])  # without the title

    def is_rule(row: str) -> bool:
        return set(row) <= set("─-")

    first = next((row for row in rows if not is_rule(row)), "")
    message = " ".join([first, *itertools.takewhile(lambda row: not is_rule(row), rows)]).rstrip(".")
    for row in rows:
        if row.startswith("Perhaps you meant"):
            return f"{message}; did you mean {next(rows, '').split(' ')[0]}?"
    return message


def _registry() -> Any:
    """tyro, told that a mapping is written as JSON."""
    import json

    import tyro

    def from_json(words: list[str]) -> dict[str, Any]:
        value = json.loads(words[0])
        if not isinstance(value, dict):
            raise ValueError("a JSON object is needed, as '{\"window_size\": 8}'")
        return value

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

    return registry
