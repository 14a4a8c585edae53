"""Recipes: one function for each row of the paper's tables, found by name."""

import difflib
from collections.abc import Callable

from fastmim.config import PretrainConfig
from fastmim.errors import UsageError
from fastmim.recipes import fastmim_in1k

RECIPES: dict[str, Callable[[], PretrainConfig]] = {
    recipe.__name__.replace("_", "-"): recipe
    for recipe in (
        fastmim_in1k.vit_b_800,
        fastmim_in1k.vit_b_400,
        fastmim_in1k.vit_l_800,
        fastmim_in1k.swin_b_400,
        fastmim_in1k.swin_l_800,
        fastmim_in1k.swin_l_400,
        fastmim_in1k.pvt_v2_b2_800,
        fastmim_in1k.convnext_b_800,
        fastmim_in1k.convnextv2_b_800,
    )
}


def find_recipe(name: str) -> PretrainConfig:
    """The configuration of a recipe; only ``data`` and ``out`` are missing. Raises UsageError."""
    if name not in RECIPES:
        close = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(RECIPES)}"
        raise UsageError(f"recipe: {name} is not there; {hint}")
    return RECIPES[name]()
