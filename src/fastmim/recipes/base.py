"""Base configuration, which the settings given by the user override."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from fastmim.config import PretrainConfig, RunConfig, build, merge, read_yaml
from fastmim.config.settings import flat
from fastmim.encoders.names import is_custom
from fastmim.encoders.trust import Trust, check_plain
from fastmim.errors import UsageError
from fastmim.recipes.catalogue import recipe
from fastmim.recipes.methods import defaults_of
from fastmim.train.run_files import CONFIG, holds_run

C = TypeVar("C", bound=RunConfig)
MODELS = ("model", "distill.model")  # settings that name a model


def base_config(
    cls: type[C],
    config: str | os.PathLike[str] | None,
    recipe_name: str | None,
    resumed: str | None,
    method: str | None = None,
    given: Mapping[str, Any] | None = None,
    trust_code: bool = False,
) -> C:
    """Return the settings of a stored run, a recipe or the method's paper, with a file's settings over them.

    Args:
        method: method that the user named, in addition to those of recipe and file.
        given: settings that the user gave, nested or dotted; they take precedence over those of files.
        trust_code: allow files to name factories that the user did not give.

    Raises:
        UsageError: a recipe or file does not exist, recipe, file and method contradict each other, or a file
            names a factory that the user did not give.
    """
    # Read the recipe and the file.
    base = cls()
    if recipe_name:
        found = recipe(recipe_name)
        if not isinstance(found.config, cls):
            raise UsageError(f"recipe: {recipe_name} is one for `fastmim {found.verb}`")
        base = found.config
    by_user = flat(given or {})
    settings: dict[str, Any] = {}
    if config:
        settings = read_yaml(Path(config).expanduser(), pipe=True)
        _check_models(settings, os.fspath(config), by_user, trust_code)
    # Check that recipe, file and user name one method; without a recipe, start from its defaults.
    if isinstance(base, PretrainConfig):
        asked = {
            f"recipe {recipe_name}": base.method if recipe_name else None,
            str(config): settings.get("method"),
            "method": method,
        }
        named = _one_method(asked)
        if not recipe_name:
            base = cast("C", defaults_of(named))
    # The settings of a run to resume replace the base.
    if resumed and holds_run(run := Path(resumed).expanduser()):
        stored = run / CONFIG
        began = _stored(cls, stored)
        _check_models(began, str(stored), by_user, trust_code)
        base = build(cls, began, f"{stored}: ")
    # Merge the file's settings.
    if config:
        base = merge(base, settings, f"{os.fspath(config)}: ")
    return base


def _check_models(settings: dict[str, Any], where: str, given: Mapping[str, Any], trust_code: bool) -> None:
    """Raise UsageError if a file names models that may not be built, and the user gave no others."""
    trust = Trust.of(*(given.get(name) for name in MODELS), everything=trust_code)
    asked = flat(settings)
    for name in MODELS:
        model, kwargs = asked.get(name), asked.get(f"{name}_kwargs")
        if isinstance(model, str) and given.get(name) is None:
            trust.check(model, where, name)
        if isinstance(kwargs, dict):
            check_plain(kwargs, f"{where}: {name}_kwargs", isinstance(model, str) and is_custom(model))


def _one_method(asked: dict[str, str | None]) -> str | None:
    """Return the requested method. Raises UsageError if there are two: their settings differ."""
    given = [(where, name) for where, name in asked.items() if name]
    for where, name in given[1:]:
        if name != given[0][1]:
            raise UsageError(
                f"method = {name}{'' if where == 'method' else f' in {where}'}: {given[0][0]} is for "
                f"{given[0][1]}; leave one of them out"
            )
    return given[0][1] if given else None


def _stored(cls: type[RunConfig], file: Path) -> dict[str, Any]:
    """Read a run's config.yaml. Raises UsageError if it is missing or belongs to another verb."""
    if not file.is_file():
        raise UsageError(f"out: {file.parent} holds a run, but its {CONFIG} is missing; restore it")
    _check_kind(cls, file)
    settings = read_yaml(file)
    if not settings:
        raise UsageError(f"out: {file} is empty, but must hold the run's settings; restore it")
    return settings


def _check_kind(cls: type[RunConfig], stored: Path) -> None:
    """Raise UsageError if the first line of the stored configuration names another verb."""
    first, _, _ = stored.read_text(errors="replace").partition("\n")
    named = re.search(r"`fastmim (\w+) ", first)
    if named is not None and named[1] != cls.verb:
        raise UsageError(
            f"out: {stored.parent} holds a run of `fastmim {named[1]}`; that command resumes it with --resume"
        )
