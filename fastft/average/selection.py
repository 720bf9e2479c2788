"""Images of the selection set that models were trained on: such models are chosen for what they have seen."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from beton_tools.beton_set import BetonSet
from beton_tools.errors import UserError
from fastft.average.ingredients import Ingredient
from fastft.photos.beton_holdout import fingerprint_of
from fastft.photos.shared_images import ids_at_one_size

MOST_COMPARED = 200_000  # images of a file; comparing more would take minutes


def count_training_images(selection: Path, ingredients: Sequence[Ingredient]) -> dict[str, int]:
    """Images of the selection set that are training images of a model, by the names of the models that have any.

    Images are compared as `ids_at_one_size` does it. If the selection set or the training file has more than MOST_COMPARED, only
    samples of the same .beton count, also of its copies and subsets. Left out are models whose training file cannot be read any
    more.
    """
    chosen_by, counts, shared = BetonSet.open(selection), {}, {}
    for ingredient in ingredients:
        if ingredient.train is None:
            continue
        with suppress(UserError):
            train = BetonSet.open(ingredient.train)
            content = fingerprint_of(train.as_subset_file())  # runs on the same photographs have a copy each
            if content not in counts:
                counts[content] = _count_shared(chosen_by, train)
            shared[ingredient.name] = counts[content]
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
