"""What `fastft cost` reads: recipes whose work can be counted. It tells sweeps from them, which fastft.sweep reads."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from beton_tools.errors import UserError
from beton_tools.format import Beton
from fastft.build import recipe_arch
from fastft.config import Recipe, load_recipe
from fastft.cost.model import recipe_work


def load_priceable(path: Path, overrides: Sequence[str]) -> Recipe:
    """A recipe that `estimate` takes.

    Raises:
        UserError: as `load_recipe`, or an architecture or batch that does not fit; always with the file's name.
    """
    recipe = count_images(load_recipe(path, overrides))
    try:
        recipe_work(recipe, recipe_arch(recipe))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return recipe


def count_images(recipe: Recipe) -> Recipe:
    """The recipe with as many training images as its file has, where that is there to be asked."""
    file = recipe.data.train
    if file is None or not Path(file).is_file():
        return recipe
    return replace(recipe, data=replace(recipe.data, train_size=Beton.open(file).num_samples))


def is_sweep(path: Path) -> bool:
    """By its keys; what cannot be read is left to `load_recipe` to refuse."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return isinstance(document, dict) and not {"title", "rows"}.isdisjoint(document)
