"""Recipes by name: one function for each row of the paper's tables that this package can run."""

from fastmim.recipes.base import base_config
from fastmim.recipes.catalogue import catalogue, recipe, recipes_under
from fastmim.recipes.definition import Recipe, resolve, smoke, smoke_transfer

__all__ = [
    "Recipe",
    "base_config",
    "catalogue",
    "recipe",
    "recipes_under",
    "resolve",
    "smoke",
    "smoke_transfer",
]
