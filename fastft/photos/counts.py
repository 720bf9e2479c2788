"""A recipe for the images that its `data.train` has, without preparing them: for commands that explain and price recipes."""

from collections.abc import Sequence
from pathlib import Path

from beton_tools.base.errors import UserError
from fastft.model.recipe_model import recipe_arch
from fastft.photos.paths import exists, holds_out_of_beton, needs_conversion
from fastft.recipe import Recipe, load_recipe
from fastft.recipe.training_images import with_training_files
from fastft.run.start_weights import with_run_weights


def load_counted(reference: str | Path, overrides: Sequence[str]) -> Recipe:
    """Load a recipe that can be priced, with the number of images of its training data if that exists.

    Raises UserError: as `load_recipe`, or an architecture or batch that does not fit; always with the recipe's name.
    """
    recipe = count_images(load_recipe(reference, overrides))
    try:
        recipe_arch(recipe)
        recipe.steps_per_epoch()
    except UserError as error:
        raise UserError(f"{reference}: {error}") from None
    return recipe


def count_images(recipe: Recipe) -> Recipe:
    """The recipe with as many training images and classes as its training data has, if they exist.

    Raises UserError: photographs that cannot be used; automatic options, and a `data.train` that does not exist.
    """
    return list_images(recipe)[0]


def list_images(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """Return the recipe as `count_images` does, and warnings about its images, such as missing files.

    Raises UserError: as `count_images`.
    """
    file = recipe.data.train
    if file is not None and recipe.automatic and not exists(file):
        raise UserError(f"{file}: no such file or folder; its images decide the options that are `auto`")
    if file is None or not exists(file):
        return with_run_weights(recipe), []
    # these load the image libraries
    if needs_conversion(file) or holds_out_of_beton(recipe):
        from fastft.photos.prepare import count_prepared

        counted, warnings = count_prepared(recipe)
        return with_run_weights(counted), warnings
    from beton_tools.read.beton_set import BetonSet

    return with_run_weights(with_training_files(recipe, BetonSet.open(file))), []
