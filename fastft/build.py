"""Build what a recipe describes: model, augmentation policy, mixer, learning rate schedule."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fastft.augment import AugmentPolicy, parse_policy
from fastft.config import Recipe, without_expectation
from fastft.model import Arch, Classifier, build_classifier, load_arch, load_tower_weights
from fastft.model.attention import prepare_for_compile
from fastft.optim import WarmupCosine

if TYPE_CHECKING:
    from fastft.augment import Mixer


def with_train_size(recipe: Recipe, samples: int) -> Recipe:
    """The recipe with the number of samples of its training file; another one than it states ends its expected accuracy."""
    if samples == recipe.data.train_size:
        return recipe
    recipe = replace(recipe, data=replace(recipe.data, train_size=samples))
    return recipe if recipe.about.top1 is None else without_expectation(recipe, ["data.train_size"])


def recipe_arch(recipe: Recipe) -> Arch:
    """The recipe's architecture at its image size. Raises as `load_arch` and `Arch.at`."""
    return load_arch(recipe.model.arch).at(recipe.model.image_size)


def build_model(recipe: Recipe, *, pretrained: bool = True, arch: Arch | None = None) -> Classifier:
    """The classifier on the CPU, with pretrained weights in the tower and a head initialised from the recipe's seed.

    Args:
        pretrained: False leaves the tower at its random initialisation, for checkpoints that hold the weights.
        arch: the architecture stored in a checkpoint; None for the one that the recipe names.
    """
    m = recipe.model
    torch.manual_seed(recipe.train.seed)
    model = build_classifier(
        arch or recipe_arch(recipe),
        recipe.data.num_classes,
        layer_scale=m.layer_scale,
        rel_pos_bias=m.rel_pos_bias,
        drop_path=m.drop_path,
        patch_dropout=recipe.largest_patch_dropout,
        head_init_scale=m.head_init_scale,
        freeze_conv1=m.freeze_conv1,
        trainable_layers=m.trainable_layers,
    )
    if pretrained and m.weights != "random":
        load_tower_weights(model.visual, m.weights, m.arch)
    return model


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
    )


def build_mixer(recipe: Recipe) -> "Mixer | None":
    """The recipe's mixup and CutMix; None if both are off."""
    a = recipe.augment
    if a.mixup == 0 and a.cutmix == 0:
        return None
    from fastft.augment import Mixer  # loads Numba, which inference does without

    return Mixer(
        mixup_alpha=a.mixup,
        cutmix_alpha=a.cutmix,
        prob=a.mix_prob,
        switch_prob=a.mix_switch_prob,
        label_smoothing=recipe.optim.label_smoothing,
        num_classes=recipe.data.num_classes,
        seed=recipe.train.seed,
    )


def build_schedule(recipe: Recipe, steps_per_epoch: int) -> WarmupCosine:
    """The learning rate over the whole cosine of the recipe, even if training stops before its end."""
    return WarmupCosine(
        lr=recipe.optim.lr,
        min_lr=recipe.schedule.min_lr,
        warmup_steps=int(recipe.schedule.warmup_epochs * steps_per_epoch),
        total_steps=recipe.schedule.epochs * steps_per_epoch,
    )


def compile_model(model: nn.Module, choice: str, device: torch.device) -> Any:
    """The model's forward through torch.compile where asked or, with 'auto', where Triton supports the GPU (8.0 on)."""
    if choice == "auto":
        native = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        choice = "on" if native and _has_triton() else "off"
    if choice == "off":
        return model
    torch.compiler.reset()  # the ninth model of a sweep would reach the limit of recompilations and run uncompiled
    prepare_for_compile()
    return torch.compile(model, dynamic=False)  # each image size of a schedule is compiled for itself


def _has_triton() -> bool:
    from importlib.util import find_spec

    return find_spec("triton") is not None
