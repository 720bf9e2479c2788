"""Automatic augmentation: none where it hides from the tower what makes the classes.

A head by ridge regression names unchanged images well. If its loss on augmented training images is above that of knowing only how
frequent each class is, the tower no longer sees there what the head goes by, and training on such images unlearns it.

Evidence, with a DINOv2-type ViT-S/14: on photographs of solar cells the loss is 1.5 to 1.7 times that of the class shares, and
12 epochs at 42 px reach 85.9 % of 255 held-out images without augmentation, 78.4 % with RandAugment, 78.0 % with crops (the head
alone 84.3 %). On CIFAR-10 it is 0.8 to 0.9 times that; RandAugment gains 1.8 points there, crops 0.3 (2,000 images).
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

from fastft.augment.recipe_policy import scheduled
from fastft.recipe import Choice, Recipe, describe_choice
from fastft.train.evaluate import evaluate

if TYPE_CHECKING:
    from fastft.train.setup import Setup

IMAGES = 2048  # augmented images whose loss decides, in whole steps
PLAIN = {"augment.policy": "none", "augment.scale_min": 1.0}


def choose_augmentation(recipe: Recipe, setup: "Setup") -> tuple[Recipe, list[str]]:
    """(the recipe to train, lines for the log): without augmentation if it hides the classes from the model's head.

    Values that the recipe gives are kept, with a warning.

    Raises:
        EvaluationStopped: in every process, if a stop was requested in one of them.
    """
    if is_plain(recipe) or scheduled(recipe, 0):
        return recipe, []
    s, loader = setup, setup.loader
    steps = min(loader.steps_per_epoch, max(1, IMAGES // recipe.optim.batch_size))
    batches = islice(loader.epoch(0), steps * s.phases.at(0).accumulation)
    (scores,) = evaluate([s.step.model], batches, s.world, s.precision, s.guard.is_stop_requested)
    shares = shares_loss(loader.class_counts)
    return (recipe, []) if scores.loss <= shares else without_augmentation(recipe, scores.loss, shares)


def is_plain(recipe: Recipe) -> bool:
    """Return True if the recipe trains on whole images, without an augmentation policy."""
    return (recipe.augment.policy, recipe.augment.scale_min) == tuple(PLAIN.values())


def shares_loss(class_counts: Sequence[int]) -> float:
    """Cross-entropy of always predicting the shares of the classes, in nats. class_counts: images by label."""
    total = sum(class_counts)
    return -sum(count / total * math.log(count / total) for count in class_counts if count)


def without_augmentation(recipe: Recipe, loss: float, shares: float) -> tuple[Recipe, list[str]]:
    """(the recipe with the values of PLAIN for those options that are `auto`, lines for the log).

    loss, shares: of the head on augmented images, and `shares_loss`.
    """
    found = f"on augmented images the head has a loss of {loss:.2f}, more than the {shares:.2f} of knowing only the class shares"
    changed = [
        Choice(o, v, f"augmentation hides the classes: {found}") for o, v in PLAIN.items() if o in recipe.automatic
    ]
    for choice in changed:
        choices = {c.option: c for c in recipe.choices} | {choice.option: choice}  # in its place
        recipe = replace(recipe.with_option(choice.option, choice.value), choices=tuple(choices.values()))
    lines = [describe_choice(c.option, c.value, c.reason) for c in changed]
    if not is_plain(recipe):
        lines.append(
            f"warning: {found}; augmentation may hide what makes the classes: compare with --augment.policy=none "
            "--augment.scale_min=1"
        )
    return recipe, lines
