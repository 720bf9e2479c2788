"""Images of the selection set that models were trained on: such models are chosen for what they have seen."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from beton_tools.beton_set import BetonSet
from beton_tools.errors import UserError
from fastft.average.ingredients import Ingredient
from fastft.photos.shared_images import ids_at_one_size

MOST_COMPARED = 200_000  # images of a file; comparing more would take minutes


def count_training_images(selection: Path, ingredients: Sequence[Ingredient]) -> dict[str, int]:
    """Images of the selection set that are training images of a model, by the names of the models that have any.

    Images are compared as `ids_at_one_size` does it. If the selection set or the training file has more than MOST_COMPARED, only
    samples of the same .beton count, also of its copies and subsets. Left out are models whose training file cannot be read any
    more.
    """
    counts: dict[str, int] = {}
    for train in {ingredient.train for ingredient in ingredients} - {None}:
        with suppress(UserError):
            counts[str(train)] = _count_shared(BetonSet.open(selection), BetonSet.open(str(train)))
    shared = {ingredient.name: counts.get(str(ingredient.train), 0) for ingredient in ingredients}
    return {name: count for name, count in shared.items() if count}


def _count_shared(selection: BetonSet, train: BetonSet) -> int:
    if max(len(selection), len(train)) <= MOST_COMPARED:
        chosen_by, trained_on = ids_at_one_size([selection, train])
        return int(np.isin(chosen_by, trained_on).sum())
    of_selection, of_train = _samples_by_file(selection), _samples_by_file(train)
    both = of_selection.keys() & of_train.keys()
    return sum(int(np.isin(of_selection[file], of_train[file]).sum()) for file in both)


def _samples_by_file(betons: BetonSet) -> dict[tuple[int, ...], np.ndarray]:
    """The ids of the samples in their files, by what identifies a file wherever it lies."""
    whole = betons.as_subset_file()
    starts = np.cumsum([0, *(file.num_samples for file in whole.files)])
    bounds = np.searchsorted(whole.samples, starts)
    return {
        tuple(file.content): whole.samples[bounds[k] : bounds[k + 1]] - starts[k]
        for k, file in enumerate(whole.files)
    }
