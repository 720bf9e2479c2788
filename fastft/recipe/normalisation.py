"""Normalisation of a timm model's own configuration, where a recipe states none."""

from collections.abc import Container
from dataclasses import replace

from fastft.recipe.constants import TIMM
from fastft.recipe.schema import Choice, Recipe

OPTIONS = ("augment.mean", "augment.std")


def with_model_normalisation(recipe: Recipe, written: Container[str]) -> Recipe:
    """The recipe with the mean and standard deviation that timm states for its model, unless they are written.

    An unknown model keeps the defaults; it is refused where it is built.
    """
    missing = [option for option in OPTIONS if option not in written]
    if not recipe.model.arch.startswith(TIMM) or not missing:
        return recipe
    import timm  # takes seconds

    name = recipe.model.arch.removeprefix(TIMM)
    try:
        stated = timm.get_pretrained_cfg(name)
    except RuntimeError:  # no such tag
        stated = None
    if stated is None:
        return recipe
    for option in missing:
        value = tuple(map(float, getattr(stated, option.rpartition(".")[2])))
        recipe = recipe.with_option(option, value)
        choice = Choice(option, value, f"timm's configuration of {name}")
        recipe = replace(recipe, choices=(*recipe.choices, choice))
    return recipe
