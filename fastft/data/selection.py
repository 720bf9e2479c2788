"""The images that `data.selection_share` leaves out of training, to choose epoch and weights."""

import numpy as np

from beton_tools.read.beton_set import BetonSet
from beton_tools.read.sample_table import strata


def split_selection(images: BetonSet, share: float) -> tuple[BetonSet, BetonSet | None]:
    """Return (the images to train on, those left out). The left-out images are the same in every run, stratified by class.

    Args:
        share: `data.selection_share`. 0 leaves none out.
    """
    if not share:
        return images, None
    by_class_N = np.lexsort((np.random.default_rng(0).permutation(len(images)), strata(images.labels)))
    is_held_N = np.diff(np.ceil(np.arange(len(images) + 1) * share)) > 0
    return images.take(np.sort(by_class_N[~is_held_N])), images.take(np.sort(by_class_N[is_held_N]))
