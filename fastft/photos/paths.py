"""What `data.train` and `data.val` name: which data must be prepared before training, and how many images there are.

It imports few modules, because most commands use it.
"""

import glob
from collections.abc import Sequence
from typing import TYPE_CHECKING

from beton_tools.base.errors import UserError
from beton_tools.base.user_files import expand_home
from beton_tools.read.beton_paths import exist_betons, is_beton_pattern

if TYPE_CHECKING:
    from fastft.recipe import AskedRecipe
    from fastft.recipe.training_images import Images

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")
ARCHIVE_SUFFIXES = (".tar",)


def needs_conversion(path: str | None) -> bool:
    """Return True if `data.train` or `data.val` is a folder, table or archive, which must be converted to a .beton."""
    if path is None:
        return False
    if is_beton_pattern(path):
        return False
    place = expand_home(path)
    is_pattern = glob.has_magic(path) and not place.exists()
    return place.is_dir() or is_pattern or place.suffix.lower() in (*TABLE_SUFFIXES, *ARCHIVE_SUFFIXES)


def exists(path: str) -> bool:
    """Return True if `data.train` or `data.val` names files or a folder that exist, or a pattern that some files match."""
    if not needs_conversion(path):
        return exist_betons(path)
    place = expand_home(path)
    return place.exists() or bool(glob.glob(str(place)))  # noqa: PTH207 - may be absolute


def holds_out_of_beton(recipe: "AskedRecipe") -> bool:
    """Return True if validation images are to be held out of a .beton: `data.hold_out_beton`, and no `data.val`."""
    data = recipe.data
    return data.hold_out_beton and data.train is not None and data.val is None and not needs_conversion(data.train)


def needs_preparation(recipe: "AskedRecipe") -> bool:
    """Return True if `data.train` or `data.val` must be converted, or images must be held out."""
    if recipe.data.train is None:
        return False
    return any(map(needs_conversion, (recipe.data.train, recipe.data.val))) or holds_out_of_beton(recipe)


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
