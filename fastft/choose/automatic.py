"""Values for `auto` options that follow from the number of training images and the tower.

The rules give exactly the paper's recipe at ImageNet's size. Below it they follow three ideas, each with its source:

- Warm-up and EMA horizon are fractions of the run. If the horizon were given in images, as in the paper, its 8 ImageNet
  epochs would be longer than a whole run on 9,000 images, and the EMA would stay 95.7 % its initial weights.
- The learning rate follows the square root of the batch, as for other Adam-like optimisers (timm, lightly-train). Below
  20,000 images it is 5e-4 at batch 32, with a milder layer decay and clipped gradients. On seven sets with 40 to 9,000
  images this is 3.5 points better than 2.25e-4 with the paper's settings (docs/measurements/photos.md).
- There are at least 1,000 steps. VTAB-1k trains for the same number, and BiT for 500 when it has fewer than 20,000
  images.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from fastft.recipe.constants import EPOCHS, FEW_IMAGES, IMAGE_SIZE, NONE, PROBE, PROBED_SIZES, STOP_EPOCH
from fastft.recipe.load import check_together
from fastft.recipe.paper import PAPER_BATCH, paper_recipe, square_root_lr
from fastft.recipe.schema import MAX_EPOCHS, AskedRecipe, Choice, count_steps
from fastft.recipe.training_images import Images, with_images

# Small datasets get enough steps. ImageNet's batch is limited to the paper's.
IMAGES_PER_UNIT_OF_BATCH = 128
SMALLEST_BATCH = 32
LEAST_AUTOMATIC_STEPS = 1000
STEPS_PER_CHECKPOINT = 100
STEPS_PER_EVALUATION = 50  # evaluating a fifth of the images, raw and EMA, takes 15 to 25 % of an epoch
FEW_SCALE, FEW_LR, FEW_DECAY, FEW_CLIP = 0.5, 20 / 3, 0.1, 1.0  # 5e-4 at batch 32
# With fewer steps, this rate disturbs the tower, and it does not recover: on clip art at 112 px, the linear probe has 53 %,
# and 11 steps at 5e-4 reach 12 %. 70 steps at 5e-4 are better than at 3.5e-4 (docs/measurements/photos.md).
FULL_LR_STEPS = 70
PAPER_SIZE = 224  # pixels
PAPER_POLICY, PAPER_SCALE, PAPER_HFLIP, PAPER_ERASE = "rand-m9-mstd0.5-inc1", 0.08, 0.5, 0.25
PAPER_RATIO = 3 / 4, 4 / 3
# No policy and no crops. If crops covered the whole area with other ratios, they would squeeze an oblong image into the
# square, but evaluation, and the linear probe that training starts from, see the square in its centre.
WHOLE = {"augment.policy": NONE, "augment.scale_min": 1.0}
CENTRE = {"augment.ratio_min": 1.0, "augment.ratio_max": 1.0}


def resolve(
    recipe: AskedRecipe, images: Images | None = None, stored: Mapping[str, Choice] | None = None
) -> AskedRecipe:
    """Return the recipe for its images, with a value for every `auto` option.

    Linear probes may change some of them later.

    Args:
        images: the images in `data.train` and `data.val`. If None, `data.train_size` images are assumed.
        stored: choices that the run was started with, which are used again instead of the rules.

    Raises:
        UserError: the images do not fill one batch, the images contradict the command line, or options exclude each
            other.
    """
    if images is not None:
        recipe = with_images(recipe, images)
    for option, rule in RULES.items():
        if option in recipe.automatic:
            recipe = recipe.with_choices((stored or {}).get(option) or Choice(option, *rule(recipe)))
    recipe = recipe.with_shares()
    check_together(recipe)
    return recipe


# rules: (value, reason) --------------------------------------------------------------------------------------------------


def _batch_size(recipe: AskedRecipe) -> tuple[int, str]:
    images = recipe.data.train_size
    power = 2 ** round(math.log2(images / IMAGES_PER_UNIT_OF_BATCH))
    if images < SMALLEST_BATCH:
        return (
            images,
            f"all {images:,} training images, because they are fewer than the smallest batch, {SMALLEST_BATCH}",
        )
    batch = min(max(power, SMALLEST_BATCH), PAPER_BATCH)
    limits = f"rounded to a power of two from {SMALLEST_BATCH} to {PAPER_BATCH:,}"
    return batch, f"{images:,} training images / {IMAGES_PER_UNIT_OF_BATCH}, {limits}"


def _epochs(recipe: AskedRecipe) -> tuple[int, str]:
    paper, steps = paper_recipe(recipe), count_steps(recipe.data.train_size, recipe.optim.batch_size)
    needed = -(-LEAST_AUTOMATIC_STEPS // steps)
    if needed <= paper.epochs:
        return paper.epochs, f"as in the paper ({paper.name}): {paper.epochs * steps:,} steps{_at_most(recipe)}"
    reason = f"the fewest epochs that give {LEAST_AUTOMATIC_STEPS:,} steps ({steps:,} per epoch)"
    return min(needed, MAX_EPOCHS), reason + _at_most(recipe)


def _at_most(recipe: AskedRecipe) -> str:
    budget = recipe.schedule.budget
    return "" if budget is None else f". Before training, measured rates decide how many of them fit into {budget}"


def _stop_epoch(recipe: AskedRecipe) -> tuple[int | None, str]:
    budget = recipe.schedule.budget
    if budget is None:
        return None, "without schedule.budget the whole schedule is trained"
    otherwise = "0 if no training that fits is expected to be better than the linear probe"
    return None, f"all epochs that fit into {budget}. It becomes {otherwise}" if _probes(recipe) else "all epochs"


def _lr(recipe: AskedRecipe) -> tuple[float, str]:
    paper, batch = paper_recipe(recipe), recipe.optim.batch_size
    lr = square_root_lr(recipe)
    reason = f"the paper's {paper.lr:g} ({paper.name}) * sqrt(batch {batch:,} / {PAPER_BATCH:,})"
    if recipe.data.train_size >= FEW_IMAGES:
        return lr, reason
    factor, few = FEW_LR, f"for fewer than {FEW_IMAGES:,} images"
    if (steps := recipe.schedule_steps()) < FULL_LR_STEPS:
        factor, few = factor * steps / FULL_LR_STEPS, f"{few} and only {steps:,} steps"
    return min(factor * lr, paper.lr), f"{reason} * {factor:.3g} {few}, at most the paper's"


def _layer_decay(recipe: AskedRecipe) -> tuple[float, str]:
    paper = paper_recipe(recipe)
    if recipe.data.train_size >= FEW_IMAGES:
        return paper.layer_decay, f"as in the paper ({paper.name})"
    reason = f"the paper's {paper.layer_decay:g} ({paper.name}) + {FEW_DECAY} for fewer than {FEW_IMAGES:,} images"
    return round(paper.layer_decay + FEW_DECAY, 2), reason


def _clip_grad(recipe: AskedRecipe) -> tuple[float | None, str]:
    if recipe.data.train_size >= FEW_IMAGES:
        return None, "as in the paper"
    return FEW_CLIP, f"gradients are clipped because the learning rate is raised for fewer than {FEW_IMAGES:,} images"


def _share(recipe: AskedRecipe, share: float) -> tuple[float, str]:
    paper, steps = paper_recipe(recipe), recipe.schedule_steps()
    return share, f"the paper's fraction of the schedule ({paper.name}): {round(share * steps):,} of {steps:,} steps"


def _head_init(recipe: AskedRecipe) -> tuple[str, str]:
    if recipe.model.head is not None:
        return "small", "the head is given by model.head"
    if recipe.data.train_size >= FEW_IMAGES:
        return "small", f"as in the paper, for {FEW_IMAGES:,} images or more"
    return "probe", f"fewer than {FEW_IMAGES:,} images, so the head starts as a linear probe (LP-FT, arXiv 2202.10054)"


def _probes(recipe: AskedRecipe) -> bool:
    return recipe.model.head_init == PROBE


def probes_sizes(recipe: AskedRecipe) -> bool:
    """Return True if linear probes decide a new run's image size. See `fastft.choose.image_size`."""
    return IMAGE_SIZE in recipe.automatic and _probes(recipe) and recipe.data.train_size < FEW_IMAGES


def _image_size(recipe: AskedRecipe) -> tuple[int, str]:
    size = recipe.model.image_size  # the paper's, or a recipe's own beside a budget
    reason = "as in the paper" if size == PAPER_SIZE else "as in the recipe"
    if not probes_sizes(recipe):
        return size, reason
    low, high, budget = PROBED_SIZES[0], PROBED_SIZES[-1], recipe.schedule.budget
    together = "" if budget is None else f", and measured rates decide what fits into {budget}"
    return size, f"{reason}. Before training, linear probes compare sizes from {low} to {high} px{together}"


def _unless_probe(value: Any, otherwise: str, recipe: AskedRecipe) -> tuple[Any, str]:
    """Return the value and its reason.

    If the head starts as a linear probe, the probe decides (see `fastft.choose.augmentation`).
    """
    return value, f"as in the paper. {otherwise}" if _probes(recipe) else "as in the paper"


def _hflip(recipe: AskedRecipe) -> tuple[float, str]:
    if recipe.data.multi_label:
        return PAPER_HFLIP, "as in the paper"
    return _unless_probe(PAPER_HFLIP, "It becomes 0 if the linear probe does not recognise mirrored images", recipe)


def _scale_min(recipe: AskedRecipe) -> tuple[float, str]:
    if recipe.data.train_size >= FEW_IMAGES:
        return PAPER_SCALE, f"as in the paper, for {FEW_IMAGES:,} images or more"
    cost = "ImageNet loses 0.2 points by this (paper Table 14)"
    return FEW_SCALE, f"with fewer than {FEW_IMAGES:,} images, smaller crops can miss the subject. {cost}"


def is_plain(recipe: AskedRecipe) -> bool:
    """Return True if the recipe trains on the largest crops, without an augmentation policy."""
    options = recipe.flat()
    return all(options[option] == value for option, value in WHOLE.items())


def _ratio(option: str, paper: float, recipe: AskedRecipe) -> tuple[float, str]:
    if is_plain(recipe):
        return CENTRE[option], "without policy and crops, the centre square is used as in evaluation"
    return _unless_probe(paper, "It becomes 1 if policy and crops are left out", recipe)


def _erase_prob(recipe: AskedRecipe) -> tuple[float, str]:
    if recipe.data.train_size >= FEW_IMAGES:
        return PAPER_ERASE, f"as in the paper, for {FEW_IMAGES:,} images or more"
    return 0.0, f"off for fewer than {FEW_IMAGES:,} images. ImageNet loses 0.1 points by this (paper Table 7)"


def _checkpoint_epochs(recipe: AskedRecipe) -> tuple[int, str]:
    """Space checkpoints out: writing one for a ViT-B/16 takes seconds, as does an epoch with a few steps."""
    epochs = max(1, STEPS_PER_CHECKPOINT // recipe.steps_per_epoch())
    return (epochs, f"a checkpoint about every {STEPS_PER_CHECKPOINT} steps ({recipe.steps_per_epoch():,} per epoch)")


def _eval_every(recipe: AskedRecipe) -> tuple[int, str]:
    """Space evaluations out: evaluating a few images can take longer than an epoch with a few steps."""
    steps = recipe.steps_per_epoch()
    epochs = -(-STEPS_PER_EVALUATION // steps)
    return epochs, f"at least {STEPS_PER_EVALUATION} steps between evaluations ({steps:,} per epoch)"


# Ordered, because a rule may use the values of those before it. `data.num_classes` is read from the training file.
RULES: dict[str, Callable[[AskedRecipe], tuple[Any, str]]] = {
    "optim.batch_size": _batch_size,
    EPOCHS: _epochs,
    "optim.lr": _lr,
    "optim.layer_decay": _layer_decay,
    "optim.clip_grad": _clip_grad,
    "schedule.warmup": lambda recipe: _share(recipe, paper_recipe(recipe).warmup),
    "ema.horizon": lambda recipe: _share(recipe, paper_recipe(recipe).horizon),
    "model.head_init": _head_init,
    IMAGE_SIZE: _image_size,
    STOP_EPOCH: _stop_epoch,
    "augment.policy": partial(
        _unless_probe,
        PAPER_POLICY,
        "Policy and crops are left out if the linear probe shows that they hide the classes",
    ),
    "augment.scale_min": _scale_min,
    "augment.ratio_min": partial(_ratio, "augment.ratio_min", PAPER_RATIO[0]),
    "augment.ratio_max": partial(_ratio, "augment.ratio_max", PAPER_RATIO[1]),
    "augment.hflip": _hflip,
    "augment.erase_prob": _erase_prob,
    "train.checkpoint_epochs": _checkpoint_epochs,
    "train.eval_every": _eval_every,
}
