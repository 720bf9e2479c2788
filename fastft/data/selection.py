"""A recipe's images: to train on, to validate on, and those that `data.selection_share` leaves out of training."""

from dataclasses import dataclass

import numpy as np

from beton_tools.base.errors import UserError
from beton_tools.read.beton_set import BetonSet
from beton_tools.read.sample_table import strata
from fastft.data.units import choose_share, read_units
from fastft.recipe import Recipe
from fastft.recipe.training_images import NO_DATA, is_imagenet


@dataclass(frozen=True)
class Files:
    """The images of a run. selection: left out of training; they choose epoch and weights."""

    train: BetonSet
    val: BetonSet | None = None
    selection: BetonSet | None = None

    @property
    def evaluated(self) -> list[BetonSet]:
        """The validation images, if there are any, then those for selection, if there are any."""
        return [betons for betons in (self.val, self.selection) if betons is not None]


def open_given(recipe: Recipe) -> tuple[BetonSet, BetonSet | None]:
    """Open the files in `data.train` and `data.val`. Raises UserError if there are no training files."""
    if recipe.data.train is None:
        raise UserError(NO_DATA)
    paths, by_position = (recipe.data.train, recipe.data.val), recipe.data.classes_by_position
    train, val = (None if p is None else BetonSet.open(p, classes_by_position=by_position) for p in paths)
    assert train is not None
    return train, val


def open_files(recipe: Recipe) -> Files:
    """Open the recipe's files. What is left out is the same in every run, with the class shares of the whole.

    Images with the same content or group stay on one side.

    Raises:
        UserError: there are no .beton files, or `train.stop_when` has no images to look at, or only ImageNet's
            validation images, whose accuracy is reported.
    """
    files, val = open_given(recipe)
    if recipe.data.selection_share:
        is_held_N = choose_share(strata(files.labels), read_units(files), recipe.data.selection_share)
        if not is_held_N.any():
            raise UserError(
                "data.selection_share finds no images to reserve: groups and identical images stay on one side, and every class "
                "keeps training images. Set a larger share, or give smaller groups"
            )
        return Files(files.take(np.flatnonzero(~is_held_N)), val, files.take(np.flatnonzero(is_held_N)))
    if recipe.train.stop_when is not None and (val is None or is_imagenet(recipe)):
        reported = "would choose the epoch on the validation images, whose accuracy is reported"
        what = "has no images to evaluate" if val is None else reported
        raise UserError(
            f"train.stop_when {what}. Set --data.selection_share=0.01, which reserves this share of the training images for it"
        )
    return Files(files, val)
