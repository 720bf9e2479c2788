"""How many images a recipe's data has, for commands that only look.

It imports few modules, because most commands use it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from beton_tools.base.errors import UserError
from fastft.photos.paths import exists, holds_out_of_beton, needs_conversion

if TYPE_CHECKING:
    from fastft.recipe import AskedRecipe
    from fastft.recipe.training_images import Images


def count_images(recipe: "AskedRecipe") -> "tuple[Images | None, Sequence[str]]":
    """Return (the images as training splits them, warnings about them), without writing anything.

    Returns None if `data.train` names nothing that exists.
    Raises:
        UserError: the images cannot be used, or `data.train` does not exist although its images decide options.
    """
    file, val = recipe.data.train, recipe.data.val
    if file is not None and recipe.automatic and not exists(file):
        raise UserError(f"{file}: no such file or folder. Its images decide the options that are `auto`")
    if file is None or not exists(file):
        return None, []
    # these load the image libraries
    if needs_conversion(file) or holds_out_of_beton(recipe):
        from fastft.photos.prepare import count_photos

        return count_photos(recipe)
    from fastft.recipe.training_images import Images
    from fastft.run.inputs import open_images, warn_of_images

    by_position = recipe.data.classes_by_position
    train, evaluated = open_images(file, by_position), None
    if val is not None and exists(val):
        evaluated = open_images(val, by_position, [train])
    return Images.of_betons(train, evaluated), warn_of_images(recipe, train, evaluated)
