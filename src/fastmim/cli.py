"""The command `fastmim VERB`: flags from the dataclasses of the library, errors as one line."""

import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated

from fastmim import __version__
from fastmim.errors import FastmimError, UsageError
from fastmim.flags import parse, peek

VERBS = {
    "pretrain": "pre-train a backbone on unlabelled images",
    "backbones": "list the backbones there are, and the image sizes that they work at",
    "stats": "measure the mean and standard deviation of each channel of a data set",
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

RECIPES_USAGE = """usage: fastmim recipes [NAME]

List the runs of the paper's tables, or those whose names begin with NAME. The
full name of one prints its settings as YAML, for `fastmim pretrain --config`.
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
    verbs: dict[str, Callable[[list[str]], int]] = {
        "pretrain": _pretrain,
        "backbones": _backbones,
        "stats": _stats,
        "recipes": _recipes,
    }
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

    from fastmim.config import PretrainConfig, merge
    from fastmim.pretraining import base_config, run_pretraining
    from fastmim.recipes import smoke

    @dataclass(frozen=True)
    class Command:
        settings: Annotated[PretrainConfig, tyro.conf.arg(name="")]
        config: str | None = None
        """YAML file with settings; flags win over it. A run's own config.yaml repeats the run."""
        recipe: str | None = None
        """Recipe to start from; `fastmim recipes` lists them."""
        smoke: bool = False
        """Try the recipe, made narrow: two steps or one a stage, on a CPU, on demo:photos without --data."""
        resume: bool = False
        """Go on with the run in --out, if there is one."""
        overwrite: bool = False
        """Replace the run in --out."""

    given = peek(arguments, "config", "recipe", "out", "stages")
    resumed = given["out"] if "--resume" in arguments else None
    base = base_config(given["config"], given["recipe"], resumed)
    if "--smoke" in arguments:
        if not given["recipe"]:
            raise UsageError("--smoke tries a recipe: give --recipe NAME; `fastmim recipes` lists them")
        base = smoke(base)
    if given["stages"] and not resumed:
        base = merge(base, {"stages": given["stages"]})  # in place of the base's one size and length
    command = parse(Command, arguments, "fastmim pretrain", Command(base))
    result = run_pretraining(command.settings, command.resume, command.overwrite)
    return 128 + result.stopped_by if result.stopped_by is not None and not result.complete else 0


def _backbones(arguments: list[str]) -> int:
    import json
    import os

    import tyro

    from fastmim import backbones

    @dataclass(frozen=True)
    class Command:
        """Name, millions of parameters (without a classifier), stride, and image sizes that work."""

        filter: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILTER")] = ""
        """A part of a name, or a pattern as 'resnet*d'. Default: all of timm."""
        families: bool = False
        """Of each family, only the model with the fewest parameters."""
        check: bool = False
        """Pre-train each for one step, export and reload it, and say whether it passed."""
        json: bool = False
        """A JSON object a line."""
        write: str | None = None
        """With --check: also write the table, as Markdown, to this file."""
        processes: int = os.cpu_count() or 1
        """Backbones that are tried at a time."""

    command = parse(Command, arguments, "fastmim backbones", Command())
    if command.processes < 1:
        raise UsageError(f"processes = {command.processes} must be at least 1")
    if command.write and not command.check:
        raise UsageError("write needs --check: the file says what passed")
    names = backbones.names_like(command.filter)
    if command.families:
        names = backbones.smallest_of_each_family(names, command.processes)
    if not command.json:
        print(backbones.HEADER)
    if not command.check:
        for known in backbones.each(backbones.look_up, names, command.processes):
            line = json.dumps(backbones.as_mapping(known)) if command.json else backbones.as_line(known)
            print(line, flush=True)
        return 0
    found = []
    for known, check in backbones.each(backbones.look_up_and_check, names, command.processes):
        found.append((known, check))
        if command.json:
            more = {"passed": check.passed, "verdict": str(check)}
            print(json.dumps(backbones.as_mapping(known) | more), flush=True)
        else:
            print(f"{backbones.as_line(known)}; {check}", flush=True)
    if command.write:
        Path(command.write).write_text(backbones.as_markdown(found))
    return 0 if all(check.passed for _, check in found) else 1


def _stats(arguments: list[str]) -> int:
    import json

    from fastmim.data.images import open_images
    from fastmim.data.stats import measure_stats

    @dataclass(frozen=True)
    class Command:
        data: str = ""
        """Images, as for `fastmim pretrain`."""
        in_chans: int = 3
        """Channels of the images."""
        image_size: int = 128
        """Side that images are brought to before they are measured, in pixels."""
        count: int = 1024
        """Images to measure, drawn by the seed; 0: all."""
        seed: int = 0
        """Fixes which images are drawn."""
        workers: int = 0
        """Processes that read images."""
        json: bool = False
        """One JSON object."""

    command = parse(Command, arguments, "fastmim stats", Command())
    if not command.data:
        raise UsageError("data is missing: give a folder of images")
    for name, least in {"in_chans": 1, "image_size": 1, "count": 0, "seed": 0, "workers": 0}.items():
        if getattr(command, name) < least:
            raise UsageError(f"{name} = {getattr(command, name)} must be at least {least}")
    size = (command.image_size, command.image_size)
    stats = measure_stats(
        open_images(command.data),
        command.in_chans,
        size,
        command.count or None,
        command.seed,
        command.workers,
    )
    mean, std = ([round(value, 6) for value in values] for values in (stats.mean, stats.std))
    if command.json:
        print(json.dumps({"mean": mean, "std": std, "images": stats.images, "unreadable": stats.unreadable}))
        return 0
    print(f"# {stats.images} images, {stats.unreadable} unreadable; 8-bit values as 0..1")
    print(f"crop:\n  mean: {mean}\n  std: {std}")
    print(f"# or: --crop.mean {' '.join(map(str, mean))} --crop.std {' '.join(map(str, std))}")
    return 0


def _recipes(arguments: list[str]) -> int:
    from fastmim.config import to_yaml
    from fastmim.recipes import recipes_under, resolve

    if any(argument in ("-h", "--help") for argument in arguments):
        print(RECIPES_USAGE)
        return 0
    if len(arguments) > 1:
        raise UsageError(f"recipes takes one name at most, not {len(arguments)}")
    found = recipes_under(arguments[0] if arguments else "")
    if [recipe.name for recipe in found] == arguments:
        print(found[0].header + to_yaml(resolve(found[0].config)), end="")
        return 0
    print("The figures are the paper's; none of them was measured with this code.")
    for table, rows in groupby(found, lambda recipe: recipe.table):
        recipes = list(rows)
        width = max(len(recipe.name) for recipe in recipes) + 2
        print(f"\n{table}")
        for recipe in recipes:
            print(f"  {recipe.name:<{width}}{recipe.paper}")
    return 0
