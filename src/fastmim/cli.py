"""The command `fastmim VERB`: flags from the dataclasses of the library, errors as one line."""

import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

from fastmim import __version__
from fastmim.errors import FastmimError, UsageError
from fastmim.flags import parse, peek

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

    given = peek(arguments, "config", "recipe", "out")
    resumed = given["out"] if "--resume" in arguments else None
    base = base_config(given["config"], given["recipe"], resumed)
    command = parse(Command, arguments, "fastmim pretrain", Command(base))
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
