"""Which paths in `data.train` and `data.val` must be prepared before training.

It imports few modules, because most commands use it.
"""

import glob
from typing import TYPE_CHECKING

from beton_tools.base.user_files import expand_home
from beton_tools.read.beton_paths import exist_betons, is_beton_pattern

if TYPE_CHECKING:
    from fastft.recipe import AskedRecipe

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
