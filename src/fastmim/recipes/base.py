"""What the settings that somebody gives are laid over."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from fastmim.config import FinetuneConfig, PretrainConfig, RunConfig, build, merge, read_yaml
from fastmim.config.settings import flat
from fastmim.encoders.names import is_custom
from fastmim.encoders.trust import Trust, check_plain
from fastmim.errors import UsageError
from fastmim.recipes.catalogue import recipe
from fastmim.recipes.methods import defaults_of
from fastmim.train.run_files import CONFIG, holds_run

C = TypeVar("C", bound=RunConfig)
MODELS = ("model", "distill.model")  # settings that name a model
VERBS: dict[type[RunConfig], str] = {PretrainConfig: "pretrain", FinetuneConfig: "finetune"}


def base_config(
    cls: type[C],
    config: str | os.PathLike[str] | None,
    recipe_name: str | None,
    resumed: str | None,
    method: str | None = None,
    given: Mapping[str, Any] | None = None,
    trust_code: bool = False,
) -> C:
    """A stored run, a recipe, or the defaults, which are those of the method's paper, and a file over it.

    Args:
        method: the one that is asked for by name, beside recipe and file.
        given: settings that the user gave and that win over those of files, nested or dotted.
        trust_code: whether files may name factories that the user has not given.

    Raises:
        UsageError: something is not there, recipe, file and method do not go together, or a file names a
            factory that the user has not given.
    """
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
    if isinstance(base, PretrainConfig):
        asked = {
            f"recipe {recipe_name}": base.method if recipe_name else None,
            str(config): settings.get("method"),
            "method": method,
        }
        named = _one_method(asked)
        if not recipe_name:
            base = cast(C, defaults_of(named))
    if resumed and holds_run(run := Path(resumed).expanduser()):
        stored = run / CONFIG
        began = _stored(cls, stored)
        _check_models(began, str(stored), by_user, trust_code)
        base = build(cls, began, f"{stored}: ")
    if config:
        base = merge(base, settings, f"{os.fspath(config)}: ")
    return base


def _check_models(settings: dict[str, Any], where: str, given: Mapping[str, Any], trust_code: bool) -> None:
    """Raise UsageError where a file asks for models that may not be built, and the user gave no others."""
    trust = Trust.of(*(given.get(name) for name in MODELS), everything=trust_code)
    asked = flat(settings)
    for name in MODELS:
        model, kwargs = asked.get(name), asked.get(f"{name}_kwargs")
        if isinstance(model, str) and given.get(name) is None:
            trust.check(model, where, name)
        if isinstance(kwargs, dict):
            check_plain(kwargs, f"{where}: {name}_kwargs", isinstance(model, str) and is_custom(model))


def _one_method(asked: dict[str, str | None]) -> str | None:
    """The method that is asked for. Raises UsageError where there are two: they have different settings."""
    given = [(where, name) for where, name in asked.items() if name]
    for where, name in given[1:]:
        if name != given[0][1]:
            raise UsageError(
                f"method = {name}{'' if where == 'method' else f' in {where}'}: {given[0][0]} is for "
                f"{given[0][1]}; leave one of them out"
            )
    return given[0][1] if given else None


def _stored(cls: type[RunConfig], file: Path) -> dict[str, Any]:
    """The settings in a run's config.yaml. Raises UsageError where they are another verb's, or gone."""
    if not file.is_file():
        raise UsageError(f"out: {file.parent} holds a run, but its {CONFIG} is missing; put it back")
    _check_kind(cls, file)
    settings = read_yaml(file)
    if not settings:
        raise UsageError(f"out: {file} is empty, but a run's settings stand there; put it back")
    return settings


def _check_kind(cls: type[RunConfig], stored: Path) -> None:
    """Raise UsageError where the run is one of another verb, which its first line names."""
    first, _, _ = stored.read_text(errors="replace").partition("\n")
    for other, verb in VERBS.items():
        if other is not cls and f"`fastmim {verb} " in first:
            raise UsageError(
                f"out: {stored.parent} holds a run of `fastmim {verb}`, which goes on with --resume"
            )
