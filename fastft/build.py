"""Build what a recipe describes: model, augmentation policy, mixer, learning rate schedule."""

import math
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from beton_tools.errors import UserError
from fastft.augment import AugmentPolicy, parse_policy
from fastft.config import Choice, Recipe, epoch_values, resolve, without_expectation
from fastft.config.automatic import paper_recipe
from fastft.model import ImageClassifier, TimmArch, TowerArch, build_classifier, load_arch, load_tower_weights
from fastft.model.arch import refuse_pool_without_class_token
from fastft.model.attention import prepare_for_compile
from fastft.model.classifier import TOKEN
from fastft.model.head_file import read_head, set_head
from fastft.model.weights import check_weights
from fastft.optim import WarmupCosine, decay_for_batch

if TYPE_CHECKING:
    from beton_tools.beton_set import BetonSet
    from fastft.augment import Mixer

NUM_CLASSES = "data.num_classes"
UNTRAINED_SHARE = 0.05  # of an EMA's weights that may still be the initial ones at the end of a run


def with_training_files(recipe: Recipe, betons: "BetonSet") -> Recipe:
    """The recipe for the images and classes of its training files.

    Raises:
        UserError: `data.num_classes` on the command line contradicts the files.
    """
    if betons.has_class_names or NUM_CLASSES in recipe.automatic:
        recipe = with_num_classes(recipe, len(betons.class_names), betons.title)
    return with_train_size(recipe, len(betons))


def with_train_size(recipe: Recipe, samples: int) -> Recipe:
    """The recipe with the number of samples of its training file; another one than it states ends its expected accuracy."""
    if samples == recipe.data.train_size:
        return recipe
    recipe = resolve(recipe.with_option("data.train_size", samples))
    return recipe if recipe.about.top1 is None else without_expectation(recipe, ["data.train_size"])


def with_num_classes(recipe: Recipe, count: int, source: object) -> Recipe:
    """The recipe with the number of classes of its training images.

    Raises:
        UserError: the command line gives another number, or there are fewer than 2 classes.
    """
    if count < 2:
        raise UserError(f"{source} has {count} class; training needs images of at least 2")
    stated = recipe.data.num_classes
    if NUM_CLASSES in recipe.automatic:
        if any(c.option == NUM_CLASSES and c.value == count for c in recipe.choices):
            return recipe
        choice = Choice(NUM_CLASSES, count, f"classes of {source}")
        others = tuple(c for c in recipe.choices if c.option != NUM_CLASSES)
        return replace(recipe.with_option(NUM_CLASSES, count), choices=(choice, *others))
    if stated == count:
        return recipe
    if NUM_CLASSES in recipe.given:
        raise UserError(f"{source} has {count} classes, --data.num_classes is {stated}; leave the option out")
    recipe = recipe.with_option(NUM_CLASSES, count)
    return recipe if recipe.about.top1 is None else without_expectation(recipe, [NUM_CLASSES])


def recipe_warnings(recipe: Recipe) -> list[str]:
    """Warnings about a recipe, one line each: an end before a schedule's last change, an untrained EMA."""
    return [*_schedule_warnings(recipe), *_ema_warnings(recipe)]


def _schedule_warnings(recipe: Recipe) -> list[str]:
    return [
        f"the training stops after epoch {recipe.epochs - 1}, before {option} ({text}) reaches its last value at epoch "
        f"{change}; the evaluation uses that value"
        for option, text in recipe.changing.items()
        if (change := epoch_values(text).last_change) >= recipe.epochs
    ]


def _ema_warnings(recipe: Recipe) -> list[str]:
    steps = recipe.epochs * recipe.steps_per_epoch()
    horizon, untrained = ema_horizon(recipe), untrained_share(recipe, steps)
    if untrained <= UNTRAINED_SHARE:
        return []
    return [
        f"the EMA's horizon of {horizon:,.0f} steps is long for {steps:,} steps: {untrained:.1%} of its weights will be "
        f"the initial ones; set {_better_horizon(recipe)}"
    ]


def _better_horizon(recipe: Recipe) -> str:
    if recipe.ema.horizon is None:
        return "--ema.horizon=auto"
    share = paper_recipe(recipe).horizon * recipe.epochs / recipe.schedule.epochs
    return f"--ema.horizon={share:.2g}, a share of the whole schedule"


def ema_horizon(recipe: Recipe) -> float:
    """Steps over which the EMA averages; 0 without an EMA."""
    if recipe.ema.decay == 0:
        return 0.0
    return 1 / (1 - decay_for_batch(recipe.ema.decay, recipe.optim.batch_size, recipe.ema.reference_batch))


def untrained_share(recipe: Recipe, steps: int) -> float:
    """How much of the EMA are the initial weights after so many steps, from 0 to 1; 0 without an EMA."""
    horizon = ema_horizon(recipe)
    return math.exp(-steps / horizon) if horizon else 0.0


def recipe_arch(recipe: Recipe) -> TowerArch:
    """The recipe's architecture at its image size. Raises as `load_arch`, `refuse_pool_without_class_token` and `Arch.at`."""
    arch = load_arch(recipe.model.arch)
    if recipe.model.pool == TOKEN:
        if isinstance(arch, TimmArch):
            raise UserError(
                f"{recipe.model.arch} has no embedding of CLIP (model.pool=token), which zero-shot heads need; use an open_clip "
                "--model.arch, or --model.pool=patches"
            )
        refuse_pool_without_class_token(recipe.model.arch)
    return arch.at(recipe.model.image_size)


def check_model(recipe: Recipe) -> None:
    """Refuse options that `build_model` would refuse, before longer work. No weights are read or fetched.

    Raises:
        UserError: as `build_model`, without what is wrong with the contents of weights.
    """
    arch, weights = recipe_arch(recipe), recipe.model.weights
    with torch.device("meta"):
        build_model(recipe, pretrained=False, arch=arch)
    if recipe.model.head is not None:
        read_head(Path(recipe.model.head).expanduser())
    if weights == "random":
        return
    if isinstance(arch, TimmArch):
        from fastft.model.timm_weights import find_tag  # imports timm, which takes seconds

        if find_tag(weights, arch.timm) is not None:
            return
    check_weights(weights, recipe.model.arch)


def build_model(recipe: Recipe, *, pretrained: bool = True, arch: TowerArch | None = None) -> ImageClassifier:
    """The classifier on the CPU, with pretrained weights in the tower, and `model.head` or a head from the recipe's seed.

    Args:
        pretrained: False leaves the model at its random initialisation, for checkpoints that hold the weights.
        arch: the architecture stored in a checkpoint; None for the one that the recipe names.
    """
    m, arch = recipe.model, arch or recipe_arch(recipe)
    torch.manual_seed(recipe.train.seed)
    if isinstance(arch, TimmArch):
        return _build_timm(recipe, arch, pretrained)
    model = build_classifier(
        arch,
        recipe.data.num_classes,
        layer_scale=m.layer_scale,
        rel_pos_bias=m.rel_pos_bias,
        drop_path=m.drop_path,
        patch_dropout=recipe.largest_patch_dropout,
        head_init_scale=m.head_init_scale,
        pool=m.pool,
        freeze_conv1=m.freeze_conv1,
        trainable_layers=m.trainable_layers,
    )
    if pretrained and m.weights != "random":
        load_tower_weights(model.visual, m.weights, m.arch)
    if pretrained and m.head is not None:
        path = Path(m.head).expanduser()
        set_head(model, read_head(path), path)
    return model


def _build_timm(recipe: Recipe, arch: TimmArch, pretrained: bool) -> ImageClassifier:
    """Build a timm model with timm's own architecture and initialisation; `build_model` for the other towers.

    Raises:
        UserError: an option that only fastft's own tower has, or one that the model lacks.
    """
    # imports timm, which takes seconds
    from fastft.model.timm_tower import build_timm_classifier, freeze_timm
    from fastft.model.timm_weights import find_tag, load_timm_weights

    m = recipe.model
    for option, is_set in (
        ("layer_scale", m.layer_scale is not None),
        ("rel_pos_bias", m.rel_pos_bias),
        ("pool", m.pool == TOKEN),
        ("head", m.head is not None),
    ):
        if is_set:
            raise UserError(
                f"model.{option} is an option of fastft's own tower, not of {m.arch}; leave it out"
            )
    pretrained = pretrained and m.weights != "random"
    tag = find_tag(m.weights, arch.timm) if pretrained else None
    model = build_timm_classifier(
        arch,
        recipe.data.num_classes,
        drop_path=m.drop_path,
        patch_dropout=recipe.largest_patch_dropout,
        smaller_images=recipe.schedule.sizes is not None,
        pretrained_tag=tag,
        head_init_scale=m.head_init_scale,
    )
    if pretrained and tag is None:
        load_timm_weights(model, m.weights)
    freeze_timm(model, first_conv=m.freeze_conv1, trainable_layers=m.trainable_layers)
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
    if not a.mixes:
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


def compile_model(model: nn.Module) -> Any:
    """The model's forward through torch.compile."""
    torch.compiler.reset()  # the ninth model of a sweep would reach the limit of recompilations and run uncompiled
    prepare_for_compile()
    return torch.compile(model, dynamic=False)  # each image size of a schedule is compiled for itself


def can_compile(device: torch.device) -> bool:
    """Return True if torch.compile has a back end for the device; on a GPU this is Triton."""
    return device.type == "cpu" or find_spec("triton") is not None
