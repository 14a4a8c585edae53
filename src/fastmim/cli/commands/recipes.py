"""The `fastmim recipes` command."""

from itertools import groupby

from fastmim.errors import UsageError
from fastmim.recipes import recipes_under

COLUMNS = 80  # of a terminal
USAGE = """usage: fastmim recipes [NAME]

List the runs of the paper's tables, or those whose names begin with NAME. The
full name of one prints its settings as YAML, for `fastmim pretrain --config`.
"""


def run(arguments: list[str]) -> int:
    """Run `fastmim recipes` and return its exit code."""
    if any(argument in ("-h", "--help") for argument in arguments):
        print(USAGE)
        return 0
    if len(arguments) > 1:
        raise UsageError(f"recipes takes one name at most, not {len(arguments)}")
    found = recipes_under(arguments[0] if arguments else "")
    if [recipe.name for recipe in found] == arguments:
        print(found[0].header + found[0].settings, end="")
        return 0
    print("The figures are the paper's; none of them was measured with this code.")
    for table, rows in groupby(found, lambda recipe: recipe.table):
        recipes = list(rows)
        width = max(len(recipe.name) for recipe in recipes) + 1
        width = min(width, COLUMNS - 3 - max(len(recipe.paper) for recipe in recipes))
        print(f"\n{table}")
        for recipe in recipes:
            print(f"  {recipe.name:<{width}} {recipe.paper}")
    return 0
