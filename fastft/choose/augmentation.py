"""Automatic augmentation: leave it out if it hides from the tower what distinguishes the classes.

A linear probe classifies unchanged images well. Its loss on augmented training images may be above the loss of knowing
only how frequent each class is. Then the tower no longer sees in these images what the probe relies on, and training on
them unlearns it.

Evidence, with a DINOv2-type ViT-S/14: on photographs of solar cells the loss is 1.5 to 1.7 times the class-frequency
loss. 12 epochs at 42 px reach 85.9 % on 255 held-out images without augmentation, 78.4 % with RandAugment and 78.0 %
with crops (84.3 % with the linear probe alone). On CIFAR-10 the ratio is 0.8 to 0.9. There RandAugment gains 1.8
points, and crops gain 0.3 (2,000 images).
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import islice

import numpy as np

from beton_tools.read.beton_set import BetonSet
from fastft.augment.recipe_policy import build_policy
from fastft.data.classes import training_shares
from fastft.data.loader import TrainLoader
from fastft.evaluate.linear_probe import FrozenTower, LinearProbe
from fastft.evaluate.ridge import Mirrored, count_mirrored
from fastft.evaluate.scores import evaluate, pooled_features
from fastft.recipe import Choice, Recipe
from fastft.recipe.constants import NONE
from fastft.run.chosen_weights import SIGNIFICANT, mcnemar

HFLIP = "augment.hflip"
LOST = 0.1  # at least this fraction of the recognised images must be lost by mirroring them
TRIED = 256  # number of mirrored images, and of augmented ones whose loss decides, in whole steps
PLAIN = {"augment.policy": "none", "augment.scale_min": 1.0}


# flips --------------------------------------------------------------------------------------------------------------------


def recognise_mirrored(tower: FrozenTower, files: BetonSet, probe: LinearProbe) -> Mirrored | None:
    """Count how many mirrored images the probe recognises, the same in all processes.

    None if the probe has no features.

    Raises:
        EvaluationStopped: a stop was requested.
    """
    recipe, world = tower.recipe, tower.world
    if world.broadcast(probe.features_ND is None):
        return None
    tried_M = np.sort(np.random.default_rng(recipe.train.seed).permutation(probe.images)[:TRIED])
    with tower.open(files, tried_M) as loader:
        flipped = (replace(batch, images=batch.images.flip(-1)) for batch in loader)
        mirrored_MD, _ = pooled_features(tower.model, flipped, world, tower.precision, tower.stop)
    found = None
    if probe.features_ND is not None and probe.labels_N is not None:
        fit = probe.labels_N, recipe.data.num_classes, recipe.train.seed
        found = count_mirrored(probe.features_ND, mirrored_MD, tried_M, probe.head.penalty, *fit)
    return world.broadcast(found)


def choose_flips(recipe: Recipe, mirrored: Mirrored) -> Recipe:
    """Leave flips out of the recipe if the probe recognises significantly (and at least a tenth) fewer mirrored images."""
    few = mirrored.mirrored <= (1 - LOST) * mirrored.plain
    lost = few and mcnemar(mirrored.plain_only, mirrored.mirrored_only) < SIGNIFICANT
    plain, flipped = (100 * count / mirrored.images for count in (mirrored.plain, mirrored.mirrored))
    reason = f"the linear probe recognises {plain:.1f} % of the images, and {flipped:.1f} % if they are mirrored"
    return recipe.with_choices(Choice(HFLIP, 0.0 if lost else recipe.augment.hflip, reason, asdict(mirrored)))


# policy and crops ---------------------------------------------------------------------------------------------------------


def is_plain(recipe: Recipe) -> bool:
    """Return True if the recipe trains on whole images, without an augmentation policy."""
    return (recipe.augment.policy, recipe.augment.scale_min) == tuple(PLAIN.values())


def compare_losses(tower: FrozenTower, files: BetonSet) -> tuple[float, float]:
    """Return (the loss of the tower's head on augmented training images, `shares_loss` for the same images).

    Raises:
        EvaluationStopped: a stop was requested.
    """
    r, world = tower.recipe, tower.world
    share = max(1, r.optim.batch_size // world.size)
    size = max(divisor for divisor in range(1, min(share, tower.batch) + 1) if share % divisor == 0)
    with TrainLoader(
        files, build_policy(r), tower.output, seed=r.train.seed, batch_size=r.optim.batch_size, micro_batch=size,
        shard=tower.shard, order=r.data.order, block_mib=r.data.block_mib, sampling=r.data.sampling,
        workers=r.data.workers or None,
    ) as loader:  # fmt: skip
        steps = min(loader.steps_per_epoch, max(1, TRIED // r.optim.batch_size))
        batches = islice(loader.epoch(0), steps * (share // size))
        (found,) = evaluate([tower.model], batches, world, tower.precision, tower.stop)
        counts = loader.class_counts
    return found.scores.loss, shares_loss(counts, r.data.sampling, len(files) if r.data.multi_label else None)


def shares_loss(class_counts: Sequence[int], sampling: str = NONE, images: int | None = None) -> float:
    """Return the cross-entropy, in nats, of always predicting the class frequencies, on images that `sampling` draws.

    The linear probe knows the class frequencies among all images, not among the sampled ones.

    Args:
        images: their number, if they have several labels. The result is then the mean over classes.
    """
    if images is not None:
        return sum(shares_loss([count, images - count]) for count in class_counts) / len(class_counts)
    known, drawn = (training_shares(class_counts, way).tolist() for way in (NONE, sampling))
    return -sum(share * math.log(own) for own, share in zip(known, drawn, strict=True) if share)


def keep_or_leave_out(recipe: Recipe, loss: float, shares: float) -> tuple[Recipe, str]:
    """Leave augmentation out of the recipe if it hides the classes.

    Options that are `auto` then get the values of PLAIN.

    Args:
        loss, shares: as `compare_losses` gives them.

    Returns:
        (the recipe; a warning or "").
    """
    hidden = loss > shares
    losses = (
        f"the linear probe's loss is {loss:.2f} on augmented images, and {shares:.2f} when guessing by class frequency"
    )
    reason = f"augmentation {'hides the classes' if hidden else 'leaves the classes visible'}: {losses}"
    values, evidence = PLAIN if hidden else recipe.flat(), {"augmented": loss, "class_shares": shares}
    recipe = recipe.with_choices(*(Choice(o, values[o], reason, evidence) for o in PLAIN if o in recipe.automatic))
    if hidden and not is_plain(recipe):
        advice = "Compare with --augment.policy=none --augment.scale_min=1"
        return recipe, f"warning: {losses}. Augmentation may hide the classes. {advice}"
    return recipe, ""
