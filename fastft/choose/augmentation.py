"""Automatic augmentation: leave it out if it hides from the tower what distinguishes the classes.

On images that it was not fitted to, a linear probe beats guessing by class frequency: at its best scale its loss is lower.
Augmentation reduces this advantage. If hardly anything is left, the augmented images no longer show the tower what the probe
relies on, and training on them unlearns it.

Evidence, with a DINOv2-type ViT-S/14 at 42 px: on solar cells and hand signs, 6 and 17 % of the advantage is left, and training
is better without augmentation. On waste, groceries, CIFAR-10, rooms, clothes, stamps and flowers, 33 to 54 % is left
(docs/measurements/photos.md, Augmentation).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch

from beton_tools.read.beton_set import BetonSet
from fastft.augment.recipe_policy import build_policy
from fastft.choose.automatic import CENTRE, WHOLE, is_plain
from fastft.data.classes import training_shares
from fastft.data.loader import Batch, TrainLoader
from fastft.evaluate.linear_probe import FrozenTower, LinearProbe
from fastft.evaluate.ridge import Mirrored, count_mirrored, score_out_of_fold, smallest_loss
from fastft.evaluate.scores import pooled_features
from fastft.recipe import AskedRecipe, Choice
from fastft.recipe.constants import NONE
from fastft.run.paired import SIGNIFICANT, mcnemar

HFLIP = "augment.hflip"
LOST = 0.1  # flips are left out only if mirroring loses at least this fraction of the recognised images
TRIED = 256  # how many images are mirrored, and how many are augmented to compare losses, in whole steps
KEPT = 0.25  # augmentation must leave at least this fraction of what the probe knows about the classes


# flips --------------------------------------------------------------------------------------------------------------------


def recognise_mirrored(tower: FrozenTower, files: BetonSet, probe: LinearProbe) -> Mirrored | None:
    """Count how many mirrored images the probe recognises, the same in all processes.

    None if the probe has no features.

    Raises:
        EvaluationStopped: a stop was requested.
    """
    recipe, world = tower.recipe, tower.world
    if world.broadcast(probe.data is None):
        return None
    tried_M = np.sort(np.random.default_rng(recipe.train.seed).permutation(probe.images)[:TRIED])
    with tower.open(files, tried_M) as loader:
        flipped = (replace(batch, images=batch.images.flip(-1)) for batch in loader)
        mirrored_MD, _ = pooled_features(tower.model, flipped, world, tower.precision, tower.stop)
    found = None
    if probe.data is not None:
        found = count_mirrored(probe.data, mirrored_MD, tried_M, probe.head.penalty)
    return world.broadcast(found)


def choose_flips(recipe: AskedRecipe, mirrored: Mirrored) -> AskedRecipe:
    """Leave flips out of the recipe if the probe recognises significantly (and at least a tenth) fewer mirrored images."""
    few = mirrored.mirrored <= (1 - LOST) * mirrored.plain
    lost = few and mcnemar(mirrored.plain_only, mirrored.mirrored_only) < SIGNIFICANT
    plain, flipped = (100 * count / mirrored.images for count in (mirrored.plain, mirrored.mirrored))
    reason = f"the linear probe recognises {plain:.1f} % of the images, and {flipped:.1f} % if they are mirrored"
    return recipe.with_choices(Choice(HFLIP, 0.0 if lost else recipe.augment.hflip, reason, asdict(mirrored)))


# policy and crops ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Losses:
    """Cross-entropy in nats on training images that a linear probe was not fitted to, at the probe's best scale.

    plain, augmented: on the same images, unchanged and augmented. class_shares: see `shares_loss`.
    """

    plain: float
    augmented: float
    class_shares: float

    @property
    def kept(self) -> float:
        """The fraction of the probe's advantage over guessing that augmentation leaves. 1 if there is no advantage."""
        known = self.class_shares - self.plain
        return (self.class_shares - self.augmented) / known if known > 0 else 1.0


def compare_losses(tower: FrozenTower, files: BetonSet, probe: LinearProbe) -> Losses:
    """Compare the probe's losses, the same in all processes.

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
        batches: Iterable[Batch] = islice(loader.epoch(0), steps * (share // size))
        if numbered := not world.broadcast(probe.data is None):
            batches = (replace(b, labels=torch.from_numpy(b.ids).to(b.labels.device)) for b in batches)
        features_MD, found_M = pooled_features(tower.model, batches, world, tower.precision, tower.stop)
        shares = shares_loss(loader.class_counts, r.data.sampling, len(files) if r.data.multi_label else None)

    def score() -> Losses:
        if not numbered:  # with so many images, the head has learnt none by heart
            scores_MK = features_MD @ probe.head.weight_KD.T + probe.head.bias_K
            return Losses(float(probe.head.losses_N.mean()), smallest_loss(scores_MK, found_M), shares)
        assert probe.data is not None
        views = [probe.data.features_ND[found_M], features_MD]
        plain, augmented = score_out_of_fold(probe.data, views, found_M, probe.head.penalty)
        labels_M = probe.data.labels_N[found_M]
        return Losses(smallest_loss(plain, labels_M), smallest_loss(augmented, labels_M), shares)

    return world.in_main(score)


def shares_loss(class_counts: Sequence[int], sampling: str = NONE, images: int | None = None) -> float:
    """Return the cross-entropy, in nats, of always predicting the class frequencies, on images that `sampling` draws.

    The linear probe knows the class frequencies among all images, not among the sampled ones.

    Args:
        images: how many images there are, if they have several labels. The result is then the mean over classes.
    """
    if images is not None:
        return sum(shares_loss([count, images - count]) for count in class_counts) / len(class_counts)
    known, drawn = (training_shares(class_counts, way).tolist() for way in (NONE, sampling))
    return -sum(share * math.log(own) for own, share in zip(known, drawn, strict=True) if share)


def keep_or_leave_out(recipe: AskedRecipe, losses: Losses) -> tuple[AskedRecipe, str]:
    """Leave augmentation out of the recipe if it hides the classes.

    Options that are `auto` then get WHOLE's values. If that leaves no augmentation at all, they get CENTRE's as well. If
    augmentation stays, all of them keep their values, for this reason.

    Returns:
        (the recipe, a warning or "").
    """
    hidden = losses.kept < KEPT
    figures = (
        f"a linear probe keeps {max(0.0, losses.kept):.0%} of its lead over guessing by class frequency (loss: guessing "
        f"{losses.class_shares:.2f}, probe {losses.plain:.2f}, probe with augmentation {losses.augmented:.2f})"
    )
    reason = f"augmentation {'hides the classes' if hidden else 'leaves the classes visible'}: {figures}"
    evidence = asdict(losses) | {"kept": losses.kept}

    def decide(recipe: AskedRecipe, values: Mapping[str, Any]) -> AskedRecipe:
        return recipe.with_choices(
            *(Choice(o, v, reason, evidence) for o, v in values.items() if o in recipe.automatic)
        )

    if not hidden:
        return decide(recipe, {option: recipe.flat()[option] for option in WHOLE | CENTRE}), ""
    recipe = decide(recipe, WHOLE)
    if is_plain(recipe):
        return decide(recipe, CENTRE), ""
    advice = "Compare with --augment.policy=none --augment.scale_min=1"
    return recipe, f"{figures}. Augmentation may hide the classes. {advice}"
