"""Augmentation policy and mixer that a recipe describes."""

from typing import TYPE_CHECKING

from fastft.augment.policies import AugmentPolicy, parse_policy
from fastft.recipe import Recipe, epoch_values

if TYPE_CHECKING:
    from fastft.augment.mix import Mixer


def scheduled(recipe: Recipe, epoch: int) -> dict[str, float]:
    """The values of an epoch of the augmentation options that `schedule` gives by epoch, by name."""
    texts = {name: getattr(recipe.schedule, name) for name in ("magnitude", "scale_min", "erase_prob")}
    return {name: epoch_values(text).at(epoch) for name, text in texts.items() if text is not None}


def build_policy(recipe: Recipe, epoch: int = 0) -> AugmentPolicy:
    a, now = recipe.augment, scheduled(recipe, epoch)
    return parse_policy(
        a.policy,
        crop=a.crop,
        scale=(now.get("scale_min", a.scale_min), a.scale_max),
        ratio=(a.ratio_min, a.ratio_max),
        hflip=a.hflip,
        vflip=a.vflip,
        quarter_turns=a.quarter_turns,
        color_jitter=a.color_jitter,
        color_jitter_prob=a.color_jitter_prob,
        magnitude=now.get("magnitude"),
        erase_prob=now.get("erase_prob", a.erase_prob),
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
