"""The images in .beton files, which need no preparation."""

import os

from beton_tools.base.errors import UserError
from beton_tools.read.beton_paths import find_betons, is_named_beton
from beton_tools.read.beton_set import BetonSet
from fastft.data.classes import refuse_other_classes
from fastft.data.selection import open_given
from fastft.data.warnings import data_warnings, describe_betons
from fastft.photos.paths import GIVE
from fastft.recipe import Recipe
from fastft.recipe.training_images import Images


def count_betons(recipe: Recipe) -> Images:
    """Count the images in the recipe's .beton files. Raises UserError: it names none, or they cannot be read."""
    return Images.of_betons(*open_given(recipe))


def warn_of_betons(recipe: Recipe) -> list[str]:
    """Return what you should know about the recipe's .beton files. See `fastft.data.warnings`.

    Raises:
        UserError: the files cannot be read, or have other classes.
    """
    train, val = open_given(recipe)
    if val is None:
        return data_warnings(*describe_betons(train))
    by_position, expected = recipe.data.classes_by_position, train.known_classes
    note = refuse_other_classes(val.known_classes, expected, val.title, other=train.title, by_position=by_position)
    return [*filter(None, [note]), *data_warnings(*describe_betons(train, val))]


def check_beton(path: str, classes_by_position: bool = False) -> None:
    """Raise UserError if .beton files are missing or cannot be read. The message says what may be given instead."""
    files = find_betons(path)
    for file in files:
        if not os.path.lexists(file):
            raise UserError(f"{file}: no such file or folder. {GIVE}")
    try:
        BetonSet.open(path, classes_by_position=classes_by_position)
    except UserError:
        for file in files:
            if not is_named_beton(file):
                raise UserError(f"{file}: not a .beton file. {GIVE}") from None
        raise
