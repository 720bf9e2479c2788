"""A recipe's training images, and the images that `data.selection_share` leaves out of training."""

import numpy as np

from beton_tools.base.errors import UserError
from beton_tools.read.beton_set import BetonSet
from beton_tools.read.sample_table import strata
from fastft.recipe import Recipe
from fastft.recipe.training_images import NO_DATA, is_imagenet


def open_training(recipe: Recipe) -> tuple[BetonSet, BetonSet | None]:
    """Return (the images to train on, the images that are left out and choose epoch and weights, or None).

    The split is the same in every run, and both parts have the class shares of the whole.

    Raises:
        UserError: there are no .beton files, or `train.stop_when` has no images to look at, or only ImageNet's
            validation images, whose accuracy is reported.
    """
    if recipe.data.train is None:
        raise UserError(NO_DATA)
    files = BetonSet.open(recipe.data.train)
    if recipe.data.selection_share:
        by_class_N = np.lexsort((np.random.default_rng(0).permutation(len(files)), strata(files.labels)))
        is_held_N = np.diff(np.ceil(np.arange(len(files) + 1) * recipe.data.selection_share)) > 0
        return files.take(np.sort(by_class_N[~is_held_N])), files.take(np.sort(by_class_N[is_held_N]))
    if recipe.train.stop_when is not None and (recipe.data.val is None or is_imagenet(recipe)):
        reported = "only the validation images, whose accuracy is reported"
        what = "no images to look at" if recipe.data.val is None else reported
        raise UserError(
            f"train.stop_when has {what}. Set --data.selection_share=0.01, which leaves this share of the training images out"
        )
    return files, None
