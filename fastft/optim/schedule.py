"""The learning rate at every step: linear warm-up from 0, then a cosine to min_lr."""

import math
from collections.abc import Set
from dataclasses import dataclass

from torch.optim import Optimizer

from fastft.recipe import Recipe
from fastft.recipe.constants import FEW_IMAGES, PROBE, SHORTEST_GAINING_STEPS
from fastft.recipe.paper import PAPER_BATCH, paper_recipe, square_root_lr

SMALL_BATCH = PAPER_BATCH // 4  # with the paper's rate, twice what the square root rule gives


@dataclass(frozen=True)
class WarmupCosine:
    """The learning rate at a step, before each group's lr_scale is applied.

    Warm-up is linspace(0, lr, warmup_steps): the first step has lr 0 and the last warm-up step has the full lr.
    """

    lr: float
    min_lr: float
    warmup_steps: int
    total_steps: int

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.lr * step / max(1, self.warmup_steps - 1)
        i, n = step - self.warmup_steps, self.total_steps - self.warmup_steps
        return self.min_lr + 0.5 * (self.lr - self.min_lr) * (1 + math.cos(math.pi * i / n))


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Set every group's lr to lr times its lr_scale. This scales min_lr too, as in the reference."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def build_schedule(recipe: Recipe, steps_per_epoch: int) -> WarmupCosine:
    """Build the learning-rate schedule over the recipe's whole cosine, even if training stops before its end."""
    return WarmupCosine(
        lr=recipe.optim.lr,
        min_lr=recipe.schedule.min_lr,
        warmup_steps=int(recipe.schedule.warmup_epochs * steps_per_epoch),
        total_steps=recipe.schedule.epochs * steps_per_epoch,
    )


def short_run_warnings(recipe: Recipe) -> list[str]:
    """Warn if a run that starts from a linear probe is too short to become better than it."""
    steps = recipe.epochs * recipe.steps_per_epoch()
    if recipe.model.head_init != PROBE or not 0 < steps <= SHORTEST_GAINING_STEPS:
        return []
    count = "1 step is" if steps == 1 else f"{steps} steps are"
    return [
        f"{count} few. Runs of {SHORTEST_GAINING_STEPS} steps or fewer have ended below the linear probe that they start "
        "from. Train for more epochs, or at a smaller --model.image_size"
    ]


def small_batch_warnings(recipe: Recipe, asked: Set[str]) -> list[str]:
    """Warn if the batch is much smaller than the paper's, and the learning rate was not reduced with it.

    L/14 at batch 32 with the rate for 2,048 ends at 1 to 5 % (reference's issue 6). There is no warning for a rate from
    the command line, nor below FEW_IMAGES images, which are trained at higher rates.

    Args:
        asked: options that the command line set, or that are automatic.
    """
    lr, fitting = recipe.optim.lr, square_root_lr(recipe)
    is_small = recipe.optim.batch_size <= SMALL_BATCH and lr >= 2 * fitting
    if "optim.lr" in asked or not is_small or recipe.epochs == 0 or recipe.data.train_size < FEW_IMAGES:
        return []
    return [
        f"optim.lr {lr:g} is large for batches of {recipe.optim.batch_size:,}: the paper's {paper_recipe(recipe).lr:g} belongs "
        f"to {PAPER_BATCH:,}, and training can fail. Set --optim.lr={fitting:.2g}, which the square root rule gives, or auto"
    ]
