"""Look up recipes by name."""

import difflib
from functools import cache

from fastmim.errors import UsageError
from fastmim.recipes.definition import Recipe
from fastmim.recipes.dense import dense_recipes
from fastmim.recipes.finetuning import finetuning_recipes
from fastmim.recipes.methods import method_recipes
from fastmim.recipes.tables import TABLES, paper_figures, recipes_of


@cache
def catalogue() -> dict[str, Recipe]:
    """Return all recipes by name: tables, methods, dense tasks; a fine-tuning follows its pre-training."""
    recipes = [recipe for table in TABLES for recipe in recipes_of(table)]
    pretraining = {recipe.name: recipe for recipe in (*recipes, *method_recipes(paper_figures()))}
    found = {recipe.name: recipe for recipe in finetuning_recipes(pretraining, paper_figures())}
    order = list(pretraining)
    both = dict(sorted((pretraining | found).items(), key=lambda item: _place(item[0], order)))
    return both | {recipe.name: recipe for recipe in dense_recipes(paper_figures())}


def recipe(name: str) -> Recipe:
    """Return a recipe by its full name. Raises UsageError, with similar names, if there is none."""
    recipes = catalogue()
    if name not in recipes:
        raise UsageError(f"recipe: {name} does not exist; {_hint(name)}")
    return recipes[name]


def recipes_under(prefix: str) -> list[Recipe]:
    """Return the recipe of this name, or all whose names begin with it. Raises UsageError if none does."""
    if prefix in catalogue():
        return [recipe(prefix)]
    found = [recipe for name, recipe in catalogue().items() if name.startswith(prefix)]
    return found or [recipe(prefix)]


def _place(name: str, order: list[str]) -> tuple[int, int]:
    """Sort key: the position of the recipe's pre-training in ``order``, then whether it is fine-tuning."""
    base = name if name in order else name.rpartition("/")[0]
    return order.index(base), name != base


def _hint(name: str) -> str:
    """Suggest similar names: those that contain ``name``, best at their end, else those spelt similarly."""
    names = list(catalogue())
    holding = sorted((n for n in names if name in n), key=lambda n: (not n.endswith(name), len(n)))
    close = holding[:3] or difflib.get_close_matches(name, names, n=3)
    if close:
        return f"did you mean {', '.join(close)}?"
    tables = dict.fromkeys(n.partition("/")[0] for n in names)
    return f"`fastmim recipes` lists them, by table: {', '.join(tables)}"
