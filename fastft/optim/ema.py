"""The exponential moving average (EMA) of a model's weights, its horizon in a recipe, and a warning if this is long."""

import copy
import math

import torch
from torch import Tensor, nn

from fastft.recipe import Recipe
from fastft.recipe.paper import paper_recipe
from fastft.recipe.training_images import expected_top1

UNTRAINED_SHARE = 0.05  # there is a warning if initial weights make up more than this fraction of a run's final EMA


def decay_for_batch(decay: float, batch_size: int, reference_batch: int) -> float:
    """Return the decay that keeps the horizon in images.

    One step at `reference_batch` equals reference/batch steps at `batch_size`. For example, 0.9998 at batch 2048 has
    a horizon of 5000 steps, or 8 ImageNet epochs. At batch 1024 the decay is 0.99990.
    """
    return decay ** (batch_size / reference_batch)


class Ema:
    """Holds `module`, a copy of the model with averaged weights. Frozen parameters are shared, not copied.

    ema <- ema + (1 - decay) * (model - ema), without bias correction (timm's ModelEma, which the reference uses).
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        # frozen parameters never change, so the copy points at the same tensors
        shared = {id(p): p for p in model.parameters() if not p.requires_grad}
        self.module = copy.deepcopy(model, memo=dict(shared)).requires_grad_(False).eval()
        names = [name for name, p in model.named_parameters() if p.requires_grad]
        source, target = dict(model.named_parameters()), dict(self.module.named_parameters())
        self._source: list[Tensor] = [source[name] for name in names]
        self._target: list[Tensor] = [target[name] for name in names]

    @torch.no_grad()
    def update(self) -> None:
        torch._foreach_lerp_(self._target, self._source, 1 - self.decay)


def ema_warnings(recipe: Recipe) -> list[str]:
    """Warn if the initial weights will make up much of the run's final EMA.

    There is no warning for a recipe whose expected accuracy was measured with this EMA, nor for a run that trains nothing.
    """
    steps = recipe.epochs * recipe.steps_per_epoch()
    horizon, untrained = ema_horizon(recipe), untrained_share(recipe, steps)
    if not steps or untrained <= UNTRAINED_SHARE or expected_top1(recipe) is not None:
        return []
    better = "--ema.horizon=auto"
    if recipe.ema.horizon is not None or recipe.epochs < recipe.schedule.epochs:
        share = paper_recipe(recipe).horizon * recipe.epochs / recipe.schedule.epochs
        better = f"--ema.horizon={share:.2g}, a fraction of the whole schedule"
    return [
        f"the EMA's horizon of {horizon:,.0f} steps is long for {steps:,} steps: {untrained:.1%} of the EMA "
        f"will still be initial weights. Set {better}"
    ]


def ema_horizon(recipe: Recipe) -> float:
    """Return how many steps the EMA averages over, or 0 without an EMA."""
    if recipe.ema.decay == 0:
        return 0.0
    return 1 / (1 - decay_for_batch(recipe.ema.decay, recipe.optim.batch_size, recipe.ema.reference_batch))


def untrained_share(recipe: Recipe, steps: float) -> float:
    """Return which fraction of the EMA is still initial weights after `steps` steps, or 0 without an EMA."""
    horizon = ema_horizon(recipe)
    return math.exp(-steps / horizon) if horizon else 0.0
