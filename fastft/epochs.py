"""How many images and steps an epoch has, and after which epochs a run is evaluated."""

from dataclasses import replace

from beton_tools.errors import UserError
from fastft.config import Recipe


def with_train_size(recipe: Recipe, num_samples: int) -> Recipe:
    """The recipe with the number of training images of its file."""
    return replace(recipe, data=replace(recipe.data, train_size=num_samples))


def count_steps(num_samples: int, batch_size: int) -> int:
    """Optimiser steps of an epoch: the last, incomplete batch is dropped, as the reference does.

    Raises:
        UserError: the samples do not fill one batch.
    """
    if num_samples < batch_size:
        raise UserError(f"{num_samples} samples do not fill one batch of {batch_size}; use a smaller batch")
    return num_samples // batch_size


def steps_per_epoch(recipe: Recipe) -> int:
    """`count_steps` for the recipe's number of training images."""
    return count_steps(recipe.data.train_size, recipe.optim.batch_size)


def is_evaluated(recipe: Recipe, epochs_done: int) -> bool:
    """Whether a run is evaluated after so many epochs: every `train.eval_every` of them, and after the last."""
    return epochs_done > 0 and (epochs_done % recipe.train.eval_every == 0 or epochs_done == recipe.epochs)


def count_evaluations(recipe: Recipe) -> int:
    return sum(is_evaluated(recipe, epochs_done) for epochs_done in range(1, recipe.epochs + 1))
