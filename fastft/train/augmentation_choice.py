"""Automatic augmentation: none where it hides from the tower what makes the classes.

A head by ridge regression names unchanged images well. If its loss on augmented training images is above that of knowing only how
frequent each class is, the tower no longer sees there what the head goes by, and training on such images unlearns it.

Evidence, with a DINOv2-type ViT-S/14: on photographs of solar cells the loss is 1.5 to 1.7 times that of the class shares, and
12 epochs at 42 px reach 85.9 % of 255 held-out images without augmentation, 78.4 % with RandAugment, 78.0 % with crops (the head
alone 84.3 %). On CIFAR-10 it is 0.8 to 0.9 times that; RandAugment gains 1.8 points there, crops 0.3 (2,000 images).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

from fastft.augment.recipe_policy import build_policy, scheduled
from fastft.data.classes import training_shares
from fastft.recipe import Choice, Recipe, describe_choice
from fastft.recipe.constants import NONE
from fastft.run.chosen_weights import SIGNIFICANT, mcnemar
from fastft.train.evaluate import evaluate

if TYPE_CHECKING:
    from fastft.train.setup import Setup

HFLIP = "augment.hflip"
LOST = 0.1  # of the images that are recognised, at least, must be lost by mirroring them
IMAGES = 2048  # augmented images whose loss decides, in whole steps
PLAIN = {"augment.policy": "none", "augment.scale_min": 1.0}
DECIDED = {*PLAIN, HFLIP}


@dataclass(frozen=True)
class Mirrored:
    """How many of `images` training images a head that was fitted to others classifies correctly.

    plain: as they are; mirrored: left and right exchanged; plain_only, mirrored_only: in one of the two ways only.
    """

    images: int
    plain: int
    mirrored: int
    plain_only: int
    mirrored_only: int


def choose_augmentation(recipe: Recipe, setup: "Setup", mirrored: Mirrored | None = None) -> tuple[Recipe, list[str]]:
    """(the recipe to train, lines for the log): without flips, and without augmentation, if they hide the classes from the head.

    Values that the recipe gives are kept, with a warning. Raises EvaluationStopped: in every process, if a stop was requested
    in one of them.
    """
    s, loader = setup, setup.loader
    recipe, lines = without_flips(recipe, mirrored)
    if is_plain(recipe) or scheduled(recipe, 0):
        return recipe, lines
    loader.set_policy(build_policy(recipe))
    steps = min(loader.steps_per_epoch, max(1, IMAGES // recipe.optim.batch_size))
    batches = islice(loader.epoch(0), steps * s.phases.at(0).accumulation)
    (scores,) = evaluate([s.step.model], batches, s.world, s.precision, s.guard.is_stop_requested)
    shares = shares_loss(
        loader.class_counts, recipe.data.sampling, len(loader.betons) if recipe.data.multi_label else None
    )
    if scores.loss > shares:
        recipe, more = without_augmentation(recipe, scores.loss, shares)
        lines += more
    return recipe, lines


def without_flips(recipe: Recipe, mirrored: Mirrored | None) -> tuple[Recipe, list[str]]:
    """The recipe without flips, and why, if significantly fewer mirrored images are recognised, and a tenth fewer at least."""
    if mirrored is None or mirrored.mirrored > (1 - LOST) * mirrored.plain:
        return recipe, []
    if mcnemar(mirrored.plain_only, mirrored.mirrored_only) >= SIGNIFICANT:
        return recipe, []
    plain, flipped = (100 * count / mirrored.images for count in (mirrored.plain, mirrored.mirrored))
    reason = f"the linear probe recognises {plain:.1f} % of images, {flipped:.1f} % mirrored"
    return _with_choices(recipe, [Choice(HFLIP, 0.0, reason)])


def is_plain(recipe: Recipe) -> bool:
    """Return True if the recipe trains on whole images, without an augmentation policy."""
    return (recipe.augment.policy, recipe.augment.scale_min) == tuple(PLAIN.values())


def shares_loss(class_counts: Sequence[int], sampling: str = NONE, images: int | None = None) -> float:
    """Cross-entropy of always predicting the shares of the classes, in nats, of images that `sampling` draws.

    The probe's head knows the shares of all images, not those of the sampling. images: their number if they have several
    labels; the mean over classes.
    """
    if images is not None:
        return sum(shares_loss([count, images - count]) for count in class_counts) / len(class_counts)
    known, drawn = (training_shares(class_counts, way).tolist() for way in (NONE, sampling))
    return -sum(share * math.log(own) for own, share in zip(known, drawn, strict=True) if share)


def without_augmentation(recipe: Recipe, loss: float, shares: float) -> tuple[Recipe, list[str]]:
    """(the recipe with the values of PLAIN for those options that are `auto`, lines for the log).

    loss, shares: of the head on augmented images, and `shares_loss`.
    """
    found = f"on augmented images the head has a loss of {loss:.2f}, more than the {shares:.2f} of knowing only the class shares"
    changed = [
        Choice(o, v, f"augmentation hides the classes: {found}") for o, v in PLAIN.items() if o in recipe.automatic
    ]
    recipe, lines = _with_choices(recipe, changed)
    if not is_plain(recipe):
        lines.append(
            f"warning: {found}; augmentation may hide what makes the classes: compare with --augment.policy=none "
            "--augment.scale_min=1"
        )
    return recipe, lines


def _with_choices(recipe: Recipe, changed: Sequence[Choice]) -> tuple[Recipe, list[str]]:
    """(the recipe with these choices, each as a line)."""
    for choice in changed:
        choices = {c.option: c for c in recipe.choices} | {choice.option: choice}  # in its place
        recipe = replace(recipe.with_option(choice.option, choice.value), choices=tuple(choices.values()))
    return recipe, [describe_choice(c.option, c.value, c.reason) for c in changed]
