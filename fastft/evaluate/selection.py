"""Count the images of the selection set that are also training images of an averaged model."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from beton_tools.base.errors import UserError
from beton_tools.read.beton_set import BetonSet
from fastft.evaluate.ingredients import Ingredient
from fastft.photos.beton_holdout import fingerprint_of
from fastft.photos.shared_images import count_shared

MOST_COMPARED = 200_000  # images of a file; comparing more would take minutes


def count_training_images(selection: Path, ingredients: Sequence[Ingredient]) -> dict[str, int]:
    """The number of selection images that are training images of a model, by model; models without any are left out.

    Images are compared as in `count_shared`. If the selection set or the training file has more than MOST_COMPARED images, only
    samples of the same .beton, its copies and its subsets are compared. Models whose training file cannot be read are left out.
    """
    chosen_by, counts, shared = BetonSet.open(selection), {}, {}
    for ingredient in ingredients:
        if ingredient.train is None:
            continue
        with suppress(UserError):
            train = BetonSet.open(ingredient.train)
            content = fingerprint_of(train.as_subset_file())  # runs on the same photographs have a copy each
            if content not in counts:
                counts[content] = _count(chosen_by, train)
            shared[ingredient.name] = counts[content]
    return {name: count for name, count in shared.items() if count}


def _count(selection: BetonSet, train: BetonSet) -> int:
    if max(len(selection), len(train)) <= MOST_COMPARED:
        return count_shared(selection, [train])
    of_selection, of_train = _samples_by_file(selection), _samples_by_file(train)
    both = of_selection.keys() & of_train.keys()
    return sum(int(np.isin(of_selection[file], of_train[file]).sum()) for file in both)


def _samples_by_file(betons: BetonSet) -> dict[tuple[int, ...], np.ndarray]:
    """Sample ids within each file, by the content of the file."""
    whole = betons.as_subset_file()
    starts = np.cumsum([0, *(file.num_samples for file in whole.files)])
    bounds = np.searchsorted(whole.samples, starts)
    return {
        tuple(file.content): whole.samples[bounds[k] : bounds[k + 1]] - starts[k]
        for k, file in enumerate(whole.files)
    }
