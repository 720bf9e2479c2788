"""The images that `data.selection_share` leaves out of training, to choose epoch and weights."""

import numpy as np

from beton_tools.base.errors import UserError
from beton_tools.read.beton_set import BetonSet
from beton_tools.read.sample_table import strata
from fastft.data.units import choose_share, read_units


def split_selection(images: BetonSet, share: float) -> tuple[BetonSet, BetonSet | None]:
    """Return (the images to train on, the left-out images). These are the same in every run, stratified by class.

    Images with the same content or group stay on one side.

    Args:
        share: `data.selection_share`. 0 leaves none out.

    Raises:
        UserError: no image can be left out.
    """
    if not share:
        return images, None
    is_held_N = choose_share(strata(images.labels), read_units(images), share)
    if not is_held_N.any():
        raise UserError(
            "data.selection_share finds no images to reserve: groups and identical images stay on one side, and every class "
            "keeps training images. Set a larger share, or give smaller groups"
        )
    return images.take(np.flatnonzero(~is_held_N)), images.take(np.flatnonzero(is_held_N))
