"""Recipes decided as far as possible without weights, for the commands that explain and price recipes."""

from collections.abc import Callable, Sequence
from pathlib import Path

from beton_tools.base.errors import UserError
from beton_tools.base.user_files import expand_home
from fastft.choose.automatic import resolve
from fastft.model.recipe_model import recipe_arch
from fastft.photos.count import count_images
from fastft.recipe import AskedRecipe, load_recipe
from fastft.recipe.training_images import Images
from fastft.run.inputs import open_inputs
from fastft.run.start_weights import with_run_weights


def decide(recipe: AskedRecipe) -> tuple[AskedRecipe, Images | None, Sequence[str]]:
    """Return (the recipe as training decides it before it probes, its images if they exist, warnings about them).

    Raises:
        UserError: the photographs cannot be used, or the recipe has automatic options and `data.train` does not exist.
    """
    images, warnings = count_images(recipe)
    if expand_home(recipe.model.weights).is_dir():
        recipe = with_run_weights(recipe)
    return resolve(recipe, images), images, warnings


def decide_prepared(recipe: AskedRecipe, say: Callable[[str], None]) -> AskedRecipe:
    """Return the recipe with .beton files, as training decides it before it probes. Training uses the files again.

    Raises:
        UserError: as `fastft.photos.prepare.prepare_data`.
    """
    from fastft.photos.prepare import prepare_data  # loads the image libraries

    recipe, inputs = open_inputs(*prepare_data(recipe, say))
    return resolve(recipe, inputs.images)


def load_decided(reference: str | Path, overrides: Sequence[str]) -> AskedRecipe:
    """Load a recipe that can be priced.

    Raises:
        UserError: as `load_recipe`, or the architecture or the batch does not fit. The message always has the recipe's
            name.
    """
    recipe, _, _ = decide(load_recipe(reference, overrides))
    try:
        recipe_arch(recipe)
        recipe.steps_per_epoch()
    except UserError as error:
        raise UserError(f"{reference}: {error}") from None
    return recipe
