"""Count the images that a recipe's `data.train` and `data.val` have, without converting or writing anything."""

from beton_tools.base.errors import UserError
from fastft.photos.paths import exists, holds_out_of_beton, needs_conversion
from fastft.recipe import Recipe
from fastft.recipe.training_images import Images


def count_images(recipe: Recipe) -> tuple[Images | None, list[str]]:
    """Return (the images, split as training splits them; warnings about them).

    Returns None if `data.train` names nothing that exists.
    Raises:
        UserError: the images cannot be used, or `data.train` does not exist although its images decide options.
    """
    file = recipe.data.train
    if file is not None and recipe.automatic and not exists(file):
        raise UserError(f"{file}: no such file or folder. Its images decide the options that are `auto`")
    if file is None or not exists(file):
        return None, []
    # these load the image libraries
    if needs_conversion(file) or holds_out_of_beton(recipe):
        from fastft.photos.prepare import count_photos

        return count_photos(recipe)
    from fastft.photos.betons import count_betons, warn_of_betons

    if recipe.data.val is not None and not exists(recipe.data.val):
        recipe = recipe.with_option("data.val", None)
    return count_betons(recipe), warn_of_betons(recipe)
