"""Automatic augmentation: none where it hides from the tower what makes the classes.

A head by ridge regression names unchanged images well. If its loss on augmented training images is above that of knowing only how
frequent each class is, the tower no longer sees there what the head goes by, and training on such images unlearns it.

Evidence, with a DINOv2-type ViT-S/14: on photographs of solar cells the loss is 1.5 to 1.7 times that of the class shares, and
12 epochs at 42 px reach 85.9 % of 255 held-out images without augmentation, 78.4 % with RandAugment, 78.0 % with crops (the head
alone 84.3 %). On CIFAR-10 it is 0.8 to 0.9 times that; RandAugment gains 1.8 points there, crops 0.3 (2,000 images).
"""

import math
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

from fastft.augment.recipe_policy import build_policy
from fastft.data.classes import training_shares
from fastft.evaluate.scores import evaluate
from fastft.recipe import Choice, Recipe
from fastft.recipe.automatic import with_choices
from fastft.recipe.constants import NONE
from fastft.run.chosen_weights import SIGNIFICANT, mcnemar
from fastft.train.ridge_head import Mirrored

if TYPE_CHECKING:
    from fastft.train.setup import Setup

HFLIP = "augment.hflip"
LOST = 0.1  # of the images that are recognised, at least, must be lost by mirroring them
TRIED = 256  # mirrored images; augmented ones whose loss decides, in whole steps
PLAIN = {"augment.policy": "none", "augment.scale_min": 1.0}


def choose_augmentation(setup: "Setup", mirrored: Mirrored | None) -> tuple[Recipe, list[str]]:
    """(the recipe to train, lines for the log): without flips, and without augmentation, if they hide the classes from the head.

    The reasons of the recipe's choices become what was decided. Values that it gives are kept, with a warning. Raises
    EvaluationStopped: in every process, if a stop was requested in one of them.
    """
    s, loader = setup, setup.loader
    recipe, lines = choose_flips(s.recipe, mirrored)
    if is_plain(recipe):
        return recipe, lines
    loader.set_policy(build_policy(recipe))
    steps = min(loader.steps_per_epoch, max(1, TRIED // recipe.optim.batch_size))
    batches = islice(loader.epoch(0), steps * s.micro_batches.count)
    (scores,) = evaluate([s.step.model], batches, s.world, s.precision, s.guard.is_stop_requested)
    shares = shares_loss(
        loader.class_counts, recipe.data.sampling, len(loader.betons) if recipe.data.multi_label else None
    )
    recipe, more = keep_or_leave_out(recipe, scores.loss, shares)
    return recipe, lines + more


def choose_flips(recipe: Recipe, mirrored: Mirrored | None) -> tuple[Recipe, list[str]]:
    """The recipe without flips if significantly fewer mirrored images are recognised, and a tenth fewer at least; and why."""
    if mirrored is None:
        return recipe, []
    few = mirrored.mirrored <= (1 - LOST) * mirrored.plain
    lost = few and mcnemar(mirrored.plain_only, mirrored.mirrored_only) < SIGNIFICANT
    plain, flipped = (100 * count / mirrored.images for count in (mirrored.plain, mirrored.mirrored))
    reason = f"the linear probe recognises {plain:.1f} % of images, {flipped:.1f} % mirrored"
    return with_choices(recipe, [Choice(HFLIP, 0.0 if lost else recipe.augment.hflip, reason)])


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


def keep_or_leave_out(recipe: Recipe, loss: float, shares: float) -> tuple[Recipe, list[str]]:
    """(the recipe, where augmentation hides the classes with the values of PLAIN for options that are `auto`; lines for the log).

    loss, shares: of the head on augmented images, and `shares_loss`.
    """
    hidden = loss > shares
    losses = f"the head's loss on augmented images is {loss:.2f}, that of guessing by class shares {shares:.2f}"
    reason = f"augmentation {'hides the classes' if hidden else 'leaves the classes visible'}: {losses}"
    values = PLAIN if hidden else {option: recipe.flat()[option] for option in PLAIN}
    recipe, lines = with_choices(recipe, [Choice(o, v, reason) for o, v in values.items() if o in recipe.automatic])
    merged = [" and ".join(line.removesuffix(f": {reason}") for line in lines) + f": {reason}"] if lines else []
    if hidden and not is_plain(recipe):
        merged.append(
            f"warning: {losses}; augmentation may hide what makes the classes: compare with --augment.policy=none "
            "--augment.scale_min=1"
        )
    return recipe, merged
