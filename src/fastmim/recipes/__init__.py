"""Recipes: one function for each row of the paper's tables that is a FastMIM run, found by name."""

import difflib
from functools import cache

from fastmim.config import PretrainConfig
from fastmim.errors import UsageError
from fastmim.recipes import ablations, main_results
from fastmim.recipes.recipe import Recipe, recipes_of


@cache
def catalogue() -> dict[str, Recipe]:
    """Every recipe by name, table by table as in the paper."""
    modules = {table.name: (table, module) for module in (ablations, main_results) for table in module.TABLES}
    ordered = sorted(modules, key=lambda name: (int("".join(filter(str.isdigit, name))), name))
    return {recipe.name: recipe for name in ordered for recipe in recipes_of(*modules[name])}


def recipe(name: str) -> Recipe:
    """A recipe by its full name. Raises UsageError, naming similar ones."""
    recipes = catalogue()
    if name not in recipes:
        raise UsageError(f"recipe: {name} is not there; {_hint(name)}")
    return recipes[name]


def find_recipe(name: str) -> PretrainConfig:
    """The configuration of a recipe; only ``data`` and ``out`` are missing. Raises UsageError."""
    return recipe(name).config


def recipes_under(prefix: str) -> list[Recipe]:
    """The recipe of that name, or all whose names begin so. Raises UsageError where there is none."""
    if prefix in catalogue():
        return [recipe(prefix)]
    found = [recipe for name, recipe in catalogue().items() if name.startswith(prefix)]
    return found or [recipe(prefix)]


def _hint(name: str) -> str:
    """The most similar names; what follows the table counts as a name, too."""
    by_ending: dict[str, str] = {}
    for full in catalogue():
        by_ending.setdefault(full.partition("/")[2], full)
    close = difflib.get_close_matches(name, [*catalogue(), *by_ending], n=3)
    names = dict.fromkeys(by_ending.get(match, match) for match in close)
    if names:
        return f"did you mean {', '.join(names)}?"
    tables = dict.fromkeys(full.partition("/")[0] for full in catalogue())
    return f"`fastmim recipes` lists them; tables: {', '.join(tables)}"
