"""The images in .beton files, which need no preparation."""

import os

from beton_tools.base.errors import UserError
from beton_tools.read.beton_paths import find_betons, is_named_beton
from beton_tools.read.beton_set import BetonSet
from fastft.photos.paths import GIVE
from fastft.recipe import Recipe
from fastft.recipe.training_images import NO_DATA, Images


def count_betons(recipe: Recipe) -> Images:
    """Count the images in the recipe's .beton files. Raises UserError: it names none, or they cannot be read."""
    if recipe.data.train is None:
        raise UserError(NO_DATA)
    train, val = (None if path is None else BetonSet.open(path) for path in (recipe.data.train, recipe.data.val))
    assert train is not None
    return Images.of_betons(train, val)


def check_beton(path: str) -> None:
    """Raise UserError if .beton files are missing or cannot be read. The message says what may be given instead."""
    files = find_betons(path)
    for file in files:
        if not os.path.lexists(file):
            raise UserError(f"{file}: no such file or folder. {GIVE}")
    try:
        BetonSet.open(path)
    except UserError:
        for file in files:
            if not is_named_beton(file):
                raise UserError(f"{file}: not a .beton file. {GIVE}") from None
        raise
