"""Augmentation policy and mixer that a recipe describes."""

from dataclasses import fields
from typing import TYPE_CHECKING

from fastft.augment.policies import AugmentPolicy
from fastft.recipe import Recipe, epoch_values

if TYPE_CHECKING:
    from fastft.augment.mix import Mixer


def scheduled(recipe: Recipe, epoch: int) -> dict[str, float]:
    """The values of an epoch of the augmentation options that `schedule` gives by epoch, by name."""
    texts = {name: getattr(recipe.schedule, name) for name in ("magnitude", "scale_min", "erase_prob")}
    return {name: epoch_values(text).at(epoch) for name, text in texts.items() if text is not None}


def build_policy(recipe: Recipe, epoch: int = 0) -> AugmentPolicy:
    a, now = recipe.augment, scheduled(recipe, epoch)
    options = {field.name: getattr(a, field.name) for field in fields(AugmentPolicy) if hasattr(a, field.name)} | now
    scale = options.pop("scale_min", a.scale_min), a.scale_max
    return AugmentPolicy(
        a.policy, scale=scale, ratio=(a.ratio_min, a.ratio_max), crop_pct=recipe.train.eval_crop_pct, **options
    )


def build_mixer(recipe: Recipe) -> "Mixer | None":
    """The recipe's mixup and CutMix; None if both are off."""
    a = recipe.augment
    if not a.mixes:
        return None
    from fastft.augment.mix import Mixer  # loads Numba, which inference does without

    return Mixer(
        mixup_alpha=a.mixup,
        cutmix_alpha=a.cutmix,
        prob=a.mix_prob,
        switch_prob=a.mix_switch_prob,
        label_smoothing=recipe.optim.label_smoothing,
        num_classes=recipe.data.num_classes,
        seed=recipe.train.seed,
    )
