"""What the settings that somebody gives are laid over."""

import os
from pathlib import Path
from typing import TypeVar

from fastmim.config import FinetuneConfig, PretrainConfig, RunConfig, build, merge, read_yaml
from fastmim.errors import UsageError
from fastmim.recipes.catalogue import recipe
from fastmim.train.rundir import CONFIG

C = TypeVar("C", bound=RunConfig)
VERBS: dict[type[RunConfig], str] = {PretrainConfig: "pretrain", FinetuneConfig: "finetune"}


def base_config(
    cls: type[C], config: str | os.PathLike[str] | None, recipe_name: str | None, resumed: str | None
) -> C:
    """A stored run, a recipe, a file, or the defaults. Raises UsageError."""
    base = cls()
    if recipe_name:
        found = recipe(recipe_name)
        if not isinstance(found.config, cls):
            raise UsageError(f"recipe: {recipe_name} is one for `fastmim {found.verb}`")
        base = found.config
    if resumed and (stored := Path(resumed).expanduser() / CONFIG).is_file():
        _check_kind(cls, stored)
        base = build(cls, read_yaml(stored), f"{stored}: ")
    if config:
        base = merge(base, read_yaml(Path(config).expanduser()), f"{os.fspath(config)}: ")
    return base


def _check_kind(cls: type[RunConfig], stored: Path) -> None:
    """Raise UsageError where the run is one of another verb, which its first line names."""
    first, _, _ = stored.read_text().partition("\n")
    for other, verb in VERBS.items():
        if other is not cls and f"`fastmim {verb} " in first:
            raise UsageError(
                f"out: {stored.parent} holds a run of `fastmim {verb}`, which goes on with --resume"
            )
