"""Values of `auto` options, from the number of training images and the tower; normalisation from the model.

The rules give exactly the paper's recipe at ImageNet's size. Below it they follow three ideas, each with its source:

- Warm-up and EMA horizon are shares of the run. Given in images, as in the paper, the horizon of 8 ImageNet epochs is longer
  than a whole training of 9,000 images, whose EMA would stay 95.7 % its initial weights.
- The learning rate follows the square root of the batch, as for other Adam-like optimisers (timm, lightly-train). Below 20,000
  images it is 5e-4 at batch 32, with a milder layer decay and clipped gradients: on seven sets of 40 to 9,000 images 3.5 points
  better than 2.25e-4 with the paper's (docs/measurements/photos.md).
- The number of steps has a floor of 1,000 (VTAB-1k trains as many; BiT 500 from fewer than 20,000 images on).
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from beton_tools.base.errors import UserError
from beton_tools.base.user_files import read_user_text
from fastft.recipe.constants import TIMM
from fastft.recipe.schema import MAX_EPOCHS, Choice, Recipe, count_steps

# so that small sets have enough steps; ImageNet's batch is limited to the paper's
IMAGES_PER_UNIT_OF_BATCH = 128
SMALLEST_BATCH, PAPER_BATCH = 32, 2048
FEWEST_STEPS = 1000
STEPS_PER_CHECKPOINT = 100
STEPS_PER_EVALUATION = 50  # an evaluation of a fifth of the images, raw and EMA, takes 15 to 25 % of an epoch
FEW_IMAGES = 20_000  # below: BiT's limit between its smallest and its middle setting
FEW_SCALE, FEW_LR, FEW_DECAY, FEW_CLIP = 0.5, 20 / 3, 0.1, 1.0  # 5e-4 at batch 32
# fewer steps at that rate disturb the tower, which does not recover: clip art at 112 px, probe 53 %, 11 steps at 5e-4 12 %
FULL_LR_STEPS = 100
IMAGE_SIZE = "model.image_size"
NORMALISATION = ("augment.mean", "augment.std")
MAX_CONFIG_BYTES = 1 << 20
PAPER_SIZE, PROBED_SIZES = 224, (56, 84, 112, 168, 224, 336)  # pixels, before they are rounded to whole patches
PAPER_POLICY, PAPER_SCALE, PAPER_HFLIP, PAPER_ERASE = "rand-m9-mstd0.5-inc1", 0.08, 0.5, 0.25


@dataclass(frozen=True)
class PaperRecipe:
    """The paper's hyperparameters for one tower at batch size 2,048 (Table 10 and the reference's logs)."""

    name: str
    epochs: int
    lr: float
    layer_decay: float
    warmup: float  # share of all steps
    horizon: float  # of the EMA, share of all steps: 5,000 steps at decay 0.9998


BASE = PaperRecipe("B/16", epochs=50, lr=6e-4, layer_decay=0.6, warmup=0.2, horizon=0.16)
LARGE = PaperRecipe("L/14", epochs=30, lr=4e-4, layer_decay=0.65, warmup=1 / 6, horizon=4 / 15)
# open_clip's names of towers from L/14 on
LARGE_TOWERS = ("ViT-L", "ViT-H", "ViT-g", "ViT-bigG", "ViT-SO400M")
# parts of timm's names
LARGE_TIMM = ("_large", "_xlarge", "_huge", "_giant", "_gigantic", "_enormous", "_so400m", "_xxlarge")


def paper_recipe(recipe: Recipe) -> PaperRecipe:
    """The paper's recipe for the nearest of its two towers."""
    arch = recipe.model.arch
    if arch.startswith(TIMM):
        return LARGE if any(size in arch for size in LARGE_TIMM) else BASE
    return LARGE if arch.startswith(LARGE_TOWERS) else BASE


def resolve(recipe: Recipe, stored: Mapping[str, Choice] | None = None) -> Recipe:
    """The recipe with values for its `auto` options and for options that a share sets, by `data.train_size`.

    stored: choices that a run was started with; they are used instead of the rules', with their reasons. Raises UserError:
    the images do not fill one batch.
    """
    own = RULES.keys() & recipe.automatic
    kept = {choice.option: choice for choice in recipe.choices if choice.option not in own}
    for option, rule in RULES.items():
        if option not in recipe.automatic:
            continue
        choice = (stored or {}).get(option) or Choice(option, *rule(recipe))
        kept[option] = choice
        recipe = recipe.with_option(option, choice.value)
    return replace(_apply_shares(recipe), choices=tuple(kept.values()))


def schedule_steps(recipe: Recipe) -> int:
    """Optimiser steps of the whole schedule."""
    return recipe.schedule.epochs * recipe.steps_per_epoch()


def with_choices(recipe: Recipe, changed: Sequence[Choice]) -> tuple[Recipe, list[str]]:
    """(the recipe with these choices, each as a line)."""
    for choice in changed:
        choices = {c.option: c for c in recipe.choices} | {choice.option: choice}  # in its place
        recipe = replace(recipe.with_option(choice.option, choice.value), choices=tuple(choices.values()))
    return recipe, [describe_choice(c.option, c.value, c.reason) for c in changed]


def describe_choice(option: str, value: Any, reason: str) -> str:
    """A `Choice` as one line."""
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    return f"{option} = {shown}: {reason}"


def _apply_shares(recipe: Recipe) -> Recipe:
    """The recipe with the warm-up epochs and the EMA decay that its shares of the schedule mean."""
    if recipe.schedule.warmup is not None:
        epochs = recipe.schedule.warmup * recipe.schedule.epochs
        recipe = recipe.with_option("schedule.warmup_epochs", epochs)
    if recipe.ema.horizon is not None:
        steps = max(1, round(recipe.ema.horizon * schedule_steps(recipe)))
        recipe = recipe.with_option("ema.decay", 1 - 1 / steps)
        recipe = recipe.with_option("ema.reference_batch", recipe.optim.batch_size)
    return recipe


# rules: (value, reason) --------------------------------------------------------------------------------------------------


def _batch_size(recipe: Recipe) -> tuple[int, str]:
    images = recipe.data.train_size
    power = 2 ** round(math.log2(images / IMAGES_PER_UNIT_OF_BATCH))
    if images < SMALLEST_BATCH:
        return images, f"all {images:,} training images: fewer than the smallest batch, {SMALLEST_BATCH}"
    batch = min(max(power, SMALLEST_BATCH), PAPER_BATCH)
    limits = f"rounded to a power of two, {SMALLEST_BATCH} to {PAPER_BATCH:,}"
    return batch, f"{images:,} training images / {IMAGES_PER_UNIT_OF_BATCH}, {limits}"


def _epochs(recipe: Recipe) -> tuple[int, str]:
    paper, steps = paper_recipe(recipe), count_steps(recipe.data.train_size, recipe.optim.batch_size)
    needed = -(-FEWEST_STEPS // steps)
    if needed <= paper.epochs:
        return paper.epochs, f"as in the paper ({paper.name}): {paper.epochs * steps:,} steps"
    reason = f"{steps:,} steps per epoch: the fewest epochs with {FEWEST_STEPS:,} steps"
    return min(needed, MAX_EPOCHS), reason


def _lr(recipe: Recipe) -> tuple[float, str]:
    paper, batch = paper_recipe(recipe), recipe.optim.batch_size
    lr = paper.lr * math.sqrt(batch / PAPER_BATCH)
    reason = f"the paper's {paper.lr:g} ({paper.name}) * sqrt(batch {batch:,} / {PAPER_BATCH:,})"
    if recipe.data.train_size >= FEW_IMAGES:
        return lr, reason
    factor, few = FEW_LR, f"fewer than {FEW_IMAGES:,} images"
    if (steps := schedule_steps(recipe)) < FULL_LR_STEPS:
        factor, few = factor * steps / FULL_LR_STEPS, f"{few}, in proportion below {FULL_LR_STEPS} steps"
    return min(factor * lr, paper.lr), f"{reason} * {factor:.3g}, at most the paper's: {few}"


def _layer_decay(recipe: Recipe) -> tuple[float, str]:
    paper = paper_recipe(recipe)
    if recipe.data.train_size >= FEW_IMAGES:
        return paper.layer_decay, f"as in the paper ({paper.name})"
    reason = f"the paper's {paper.layer_decay:g} ({paper.name}) + {FEW_DECAY}: fewer than {FEW_IMAGES:,} images"
    return round(paper.layer_decay + FEW_DECAY, 2), reason


def _clip_grad(recipe: Recipe) -> tuple[float | None, str]:
    if recipe.data.train_size >= FEW_IMAGES:
        return None, "as in the paper"
    return FEW_CLIP, f"fewer than {FEW_IMAGES:,} images, at a high learning rate"


def _share(recipe: Recipe, share: float) -> tuple[float, str]:
    paper, steps = paper_recipe(recipe), schedule_steps(recipe)
    return share, f"the paper's share of the run ({paper.name}): {round(share * steps):,} of {steps:,} steps"


def _head_init(recipe: Recipe) -> tuple[str, str]:
    if recipe.model.head is not None:
        return "small", "model.head gives the head"
    if recipe.data.train_size >= FEW_IMAGES:
        return "small", f"{FEW_IMAGES:,} images or more: as in the paper"
    return ("probe", f"fewer than {FEW_IMAGES:,} images: the head starts as a linear probe (LP-FT, arXiv 2202.10054)")


def probes_sizes(recipe: Recipe) -> bool:
    """Return True if linear probes decide the image size of a new run: see `fastft.train.image_size`."""
    few = recipe.data.train_size < FEW_IMAGES
    return IMAGE_SIZE in recipe.automatic and recipe.model.head_init == "probe" and few


def largest_size(recipe: Recipe) -> int:
    """Image size that photographs are stored for: the recipe's, or the largest that may be chosen."""
    return PROBED_SIZES[-1] if IMAGE_SIZE in recipe.automatic else recipe.model.image_size


def _image_size(recipe: Recipe) -> tuple[int, str]:
    if not probes_sizes(recipe):
        return PAPER_SIZE, "as in the paper"
    low, high = PROBED_SIZES[0], PROBED_SIZES[-1]
    return PAPER_SIZE, f"as in the paper; before training, linear probes compare sizes of {low} to {high} pixels"


def _unless_probe(value: Any, otherwise: str, recipe: Recipe) -> tuple[Any, str]:
    """A training whose head starts as a linear probe decides by it: see `fastft.train.augmentation_choice`."""
    return value, f"as in the paper; {otherwise}" if recipe.model.head_init == "probe" else "as in the paper"


def _hflip(recipe: Recipe) -> tuple[float, str]:
    if recipe.data.multi_label:
        return PAPER_HFLIP, "as in the paper"
    return _unless_probe(PAPER_HFLIP, "0 if the linear probe does not recognise mirrored images", recipe)


def _scale_min(recipe: Recipe) -> tuple[float, str]:
    if recipe.data.train_size >= FEW_IMAGES:
        return PAPER_SCALE, f"{FEW_IMAGES:,} images or more: as in the paper"
    cost = "ImageNet loses 0.2 points by it (paper Table 14)"
    return FEW_SCALE, f"fewer than {FEW_IMAGES:,} images: smaller crops can miss the subject; {cost}"


def _erase_prob(recipe: Recipe) -> tuple[float, str]:
    if recipe.data.train_size >= FEW_IMAGES:
        return PAPER_ERASE, f"{FEW_IMAGES:,} images or more: as in the paper"
    return 0.0, f"fewer than {FEW_IMAGES:,} images; ImageNet loses 0.1 points without it (paper Table 7)"


def _checkpoint_epochs(recipe: Recipe) -> tuple[int, str]:
    """Writing a checkpoint of a ViT-B/16 takes seconds, as an epoch of a few steps does."""
    epochs = max(1, STEPS_PER_CHECKPOINT // recipe.steps_per_epoch())
    return (epochs, f"{recipe.steps_per_epoch():,} steps per epoch: a checkpoint about every {STEPS_PER_CHECKPOINT}")


def _eval_every(recipe: Recipe) -> tuple[int, str]:
    """Evaluating a few images can take longer than an epoch of a few steps."""
    steps = recipe.steps_per_epoch()
    epochs = -(-STEPS_PER_EVALUATION // steps)
    return epochs, f"{steps:,} steps per epoch: at least {STEPS_PER_EVALUATION} between evaluations"


# in this order: a rule may use the values of those before it. `data.num_classes` is read from the training file.
RULES: dict[str, Callable[[Recipe], tuple[Any, str]]] = {
    "optim.batch_size": _batch_size,
    "schedule.epochs": _epochs,
    "optim.lr": _lr,
    "optim.layer_decay": _layer_decay,
    "optim.clip_grad": _clip_grad,
    "schedule.warmup": lambda recipe: _share(recipe, paper_recipe(recipe).warmup),
    "ema.horizon": lambda recipe: _share(recipe, paper_recipe(recipe).horizon),
    "model.head_init": _head_init,
    IMAGE_SIZE: _image_size,
    "augment.policy": partial(
        _unless_probe, PAPER_POLICY, "none, and no crops, if the linear probe shows that they hide the classes"
    ),
    "augment.scale_min": _scale_min,
    "augment.hflip": _hflip,
    "augment.erase_prob": _erase_prob,
    "train.checkpoint_epochs": _checkpoint_epochs,
    "train.eval_every": _eval_every,
}


def model_normalisation(arch: str, weights: str) -> tuple[Mapping[str, Any], str]:
    """(values that a model states, mean and std among them; where).

    Of weights or a model of timm its configuration, of a .json file its `preprocess_cfg`. Empty for others, and for one that
    cannot be read, which is refused where it is built.
    """
    for name in (weights, arch):
        if name.startswith(TIMM):
            return _of_timm(name)
    return _of_file(arch) if arch.endswith(".json") else {}, f"preprocess_cfg of {arch}"


def _of_timm(arch: str) -> tuple[Mapping[str, Any], str]:
    import timm  # takes seconds

    name = arch.removeprefix(TIMM)
    with suppress(RuntimeError):  # no such tag
        if (config := timm.get_pretrained_cfg(name)) is not None:
            return vars(config), f"timm's configuration of {name}"
    return {}, ""


def _of_file(arch: str) -> Mapping[str, Any]:
    with suppress(UserError, ValueError, RecursionError, KeyError, TypeError):
        return dict(json.loads(read_user_text(Path(arch), MAX_CONFIG_BYTES, "a model configuration"))["preprocess_cfg"])
    return {}
