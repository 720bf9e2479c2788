"""Augmentation policy and mixer that a recipe describes."""

from typing import TYPE_CHECKING

from fastft.augment.policies import AugmentPolicy, parse_policy
from fastft.recipe import Recipe

if TYPE_CHECKING:
    from fastft.augment.mix import Mixer


def build_policy(recipe: Recipe) -> AugmentPolicy:
    a = recipe.augment
    return parse_policy(
        a.policy,
        crop=a.crop,
        scale=(a.scale_min, a.scale_max),
        ratio=(a.ratio_min, a.ratio_max),
        hflip=a.hflip,
        erase_prob=a.erase_prob,
        erase_mode=a.erase_mode,
        erase_count=a.erase_count,
        interpolation=a.interpolation,
        mean=a.mean,
        std=a.std,
        crop_pct=recipe.train.eval_crop_pct,
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
