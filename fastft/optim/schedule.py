"""The learning rate of every step: linear warm-up from 0, then a cosine to min_lr.

And the schedule and EMA that a recipe describes, with warnings about them.
"""

import math
from dataclasses import dataclass

from torch.optim import Optimizer

from fastft.optim.copies import decay_for_batch
from fastft.recipe import Recipe
from fastft.recipe.automatic import paper_recipe


@dataclass(frozen=True)
class WarmupCosine:
    """lr(step) before the groups' scales.

    Warm-up is linspace(0, lr, warmup_steps): the first step has lr 0 and the last warm-up step the full lr.
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


UNTRAINED_SHARE = 0.05  # of an EMA's weights that may still be the initial ones at the end of a run


def recipe_warnings(recipe: Recipe) -> list[str]:
    """Warnings about a recipe, one line each: an untrained EMA."""
    steps = recipe.epochs * recipe.steps_per_epoch()
    horizon, untrained = ema_horizon(recipe), untrained_share(recipe, steps)
    if untrained <= UNTRAINED_SHARE:
        return []
    better = "--ema.horizon=auto"
    if recipe.ema.horizon is not None:
        share = paper_recipe(recipe).horizon * recipe.epochs / recipe.schedule.epochs
        better = f"--ema.horizon={share:.2g}, a share of the whole schedule"
    return [
        f"the EMA's horizon of {horizon:,.0f} steps is long for {steps:,} steps: {untrained:.1%} of its weights will be "
        f"the initial ones; set {better}"
    ]


def ema_horizon(recipe: Recipe) -> float:
    """Steps over which the EMA averages; 0 without an EMA."""
    if recipe.ema.decay == 0:
        return 0.0
    return 1 / (1 - decay_for_batch(recipe.ema.decay, recipe.optim.batch_size, recipe.ema.reference_batch))


def untrained_share(recipe: Recipe, steps: int) -> float:
    """How much of the EMA are the initial weights after so many steps, from 0 to 1; 0 without an EMA."""
    horizon = ema_horizon(recipe)
    return math.exp(-steps / horizon) if horizon else 0.0


def build_schedule(recipe: Recipe, steps_per_epoch: int) -> WarmupCosine:
    """The learning rate over the whole cosine of the recipe, even if training stops before its end."""
    return WarmupCosine(
        lr=recipe.optim.lr,
        min_lr=recipe.schedule.min_lr,
        warmup_steps=int(recipe.schedule.warmup_epochs * steps_per_epoch),
        total_steps=recipe.schedule.epochs * steps_per_epoch,
    )
