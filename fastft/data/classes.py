"""Class names: do a file's labels match a model's outputs? Also the sampling factors for unequal classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from beton_tools.base.errors import UserError
from beton_tools.read.class_list import BY_POSITION, Classes, compare_classes
from fastft.recipe.constants import BALANCED, NONE

if TYPE_CHECKING:
    from beton_tools.read.beton_set import BetonSet
    from fastft.recipe import Recipe


MODEL = "the model"  # in messages


def name_outputs(classes: Sequence[str], outputs: int) -> list[str]:
    """Return a name for every output: the training file's classes, then "class k" for outputs beyond them."""
    return [*classes, *(f"class {k}" for k in range(len(classes), outputs))]


def refuse_other_classes(
    classes: Classes,
    expected: Classes,
    path: str | Path,
    *,
    other: str = MODEL,
    by_position: bool = False,
    outputs: int | None = None,
) -> str:
    """Compare the classes in the file `path` with the model's classes, by the rule in `compare_classes`.

    Args:
        other: what has the expected classes, for messages.
        by_position: `data.classes_by_position`.
        outputs: how many outputs the model has, if it may have more outputs than classes.

    Returns:
        A sentence to show if labels were taken by position, otherwise "".

    Raises:
        UserError: there are more classes than outputs, or a class differs or is missing. The message names the first
            one.
    """
    remedy = (
        "Give a file with the model's classes in its order, as `fastft convert folder --classes-of TRAIN.beton` numbers them"
        if other == MODEL
        else f"Convert it with --classes-of {other}"
    )
    advice = f"{remedy}. {BY_POSITION}"
    return compare_classes(classes, expected, str(path), other, advice, by_position=by_position, outputs=outputs)


def class_factors(class_counts: Sequence[int] | np.ndarray, rebalancing: str) -> np.ndarray:
    """Return how often `data.sampling` draws an image, by its class and relative to other images, float64 (K,).

    It is 0 for classes without images.

    Args:
        class_counts: training images per label.
    """
    counts_K = np.asarray(class_counts, np.float64)
    sizes_K = np.maximum(counts_K, 1.0)
    divisor_K = 1.0 if rebalancing == NONE else sizes_K if rebalancing == BALANCED else np.sqrt(sizes_K)
    return (counts_K > 0) / divisor_K


def training_shares(class_counts: Sequence[int], sampling: str = NONE) -> np.ndarray:
    """Return each class's fraction of the drawn images, and so of the training loss, float64 (K,)."""
    shares_K = np.asarray(class_counts) * class_factors(class_counts, sampling)
    return shares_K / shares_K.sum()


def refuse_other_labels(betons: BetonSet, recipe: Recipe) -> None:
    if (betons.label_sets is not None) != recipe.data.multi_label:
        theirs, own = ("one label", "several") if recipe.data.multi_label else ("several labels", "one")
        raise UserError(
            f"{betons.title} has {theirs} per image, but the model was trained with {own}. Give another file"
        )


def refuse_multi_label(recipe: Recipe, what: str, instead: str = "Leave it out") -> None:
    """Raise UserError if `what`, which is defined only for one label per image, is used with multi-label images."""
    if recipe.data.multi_label:
        raise UserError(f"{what} works with one label per image, but this model was trained with several. {instead}")
