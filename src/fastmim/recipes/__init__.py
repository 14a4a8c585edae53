"""Recipes: one function for each row of the paper's tables that is a FastMIM run, found by name."""

import difflib
from functools import cache

from fastmim.config import PretrainConfig
from fastmim.errors import UsageError
from fastmim.recipes.definition import Recipe, resolve, smoke
from fastmim.recipes.tables import TABLES, recipes_of

__all__ = ["Recipe", "catalogue", "find_recipe", "recipe", "recipes_under", "resolve", "smoke"]


@cache
def catalogue() -> dict[str, Recipe]:
    """Every recipe by name, table by table as in the paper."""
    return {recipe.name: recipe for table in TABLES for recipe in recipes_of(table)}


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
    """The most similar names: those that hold what was given, best at their end, else those spelt alike."""
    names = list(catalogue())
    holding = sorted((n for n in names if name in n), key=lambda n: (not n.endswith(name), len(n)))
    close = holding[:3] or difflib.get_close_matches(name, names, n=3)
    if close:
        return f"did you mean {', '.join(close)}?"
    tables = dict.fromkeys(n.partition("/")[0] for n in names)
    return f"`fastmim recipes` lists them, by table: {', '.join(tables)}"
