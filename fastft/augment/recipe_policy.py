"""Build the augmentation policy and the mixer that a recipe describes."""

from dataclasses import fields
from typing import TYPE_CHECKING

from fastft.augment.policies import AugmentPolicy
from fastft.recipe import Recipe

if TYPE_CHECKING:
    from fastft.augment.mix import Mixer


def build_policy(recipe: Recipe) -> AugmentPolicy:
    a, train = recipe.augment, recipe.train
    options = {field.name: getattr(a, field.name) for field in fields(AugmentPolicy) if hasattr(a, field.name)}
    scale, ratio = (a.scale_min, a.scale_max), (a.ratio_min, a.ratio_max)
    return AugmentPolicy(
        a.policy, scale=scale, ratio=ratio, crop_pct=train.eval_crop_pct, eval_resize=train.eval_resize,
        eval_interpolation=train.eval_interpolation, **options,
    )  # fmt: skip


def build_mixer(recipe: Recipe) -> "Mixer | None":
    """Build the recipe's mixup and CutMix. Returns None if both are off."""
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
