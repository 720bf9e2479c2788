"""Recipes: the schema of options, loading with `extends` and tables, command-line overrides, validation.

fastargs' `@param` decorator is not used. It fills arguments from one global configuration, but here several recipes are
loaded at the same time (sweeps, comparisons). A `Recipe` that is passed on also lets mypy check every option that is
read.
"""

from fastft.recipe.check import parse_duration
from fastft.recipe.load import differences, load_recipe, nearest_option, recipe_from_dict, without_expectation
from fastft.recipe.schema import SECTIONS, AskedRecipe, Choice, FinalRecipe, Recipe, count_steps, option_fields

__all__ = [
    "SECTIONS", "AskedRecipe", "Choice", "FinalRecipe", "Recipe", "count_steps", "differences",
    "load_recipe", "nearest_option", "option_fields", "parse_duration", "recipe_from_dict",
    "without_expectation",
]  # fmt: skip
