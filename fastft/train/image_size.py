"""Automatic image size (`model.image_size=auto`): larger ones as long as a linear probe of the frozen tower gains by them.

A probe costs one forward pass over the training images, and at the chosen size it becomes the head that the run starts from.
Image size can gain more than any schedule, also above the pixels that the images have; measurements: docs/measurements/photos.md.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from beton_tools.base.console import format_duration
from beton_tools.read.beton_set import BetonSet
from fastft.augment.recipe_policy import build_policy
from fastft.data.loader import EvalLoader
from fastft.data.order import Shard
from fastft.data.stage import Output
from fastft.evaluate.scores import pooled_features
from fastft.evaluate.trained import BATCH
from fastft.machine.distributed import World
from fastft.machine.precision import Precision
from fastft.model.recipe_model import build_model, recipe_arch
from fastft.recipe import Choice, Recipe
from fastft.recipe.automatic import IMAGE_SIZE, PROBED_SIZES, with_choices
from fastft.train.ridge_head import RidgeHead, fit_ridge_head

LONG_SECONDS = 3600  # no larger size whose training would take more
TRAINING_COST = 3  # of an image, in forward passes


@dataclass(frozen=True)
class Probe:
    """Features (N, D) of the training images at an image size, their labels, and the head.

    seconds: of the forward pass; of the probe that `choose_image_size` returns, of all probes.
    """

    size: int
    features_ND: np.ndarray
    labels_N: np.ndarray
    head: RidgeHead
    seconds: float

    @property
    def figures(self) -> str:
        return f"{self.size} px {100 * self.head.right_N.mean():.1f} % (loss {self.head.losses_N.mean():.3f})"

    def gains_over(self, smaller: "Probe") -> bool:
        """Return True if the loss is below that at a smaller size by more than the standard error of the paired difference."""
        gain_N = smaller.head.losses_N - self.head.losses_N
        return bool(gain_N.mean() > gain_N.std() / np.sqrt(len(gain_N)))


def choose_image_size(recipe: Recipe, fit: Callable[[Recipe], Probe]) -> tuple[Recipe, Probe]:
    """(the recipe with the chosen size, the probe at that size), the same in all processes. fit: `fit_probe`, of a recipe."""
    began, patch = time.monotonic(), recipe_arch(recipe).patch_size
    first, *larger = sorted({max(1, round(size / patch)) * patch for size in PROBED_SIZES})
    probe = chosen = fit(recipe.with_option(IMAGE_SIZE, first))
    figures, why = [probe.figures], "the largest that is tried"
    for size in larger:
        seconds = TRAINING_COST * probe.seconds * (size / probe.size) ** 2 * recipe.epochs
        if seconds > LONG_SECONDS:
            why = f"a training at {size} px would take about {format_duration(seconds)} here"
            break
        probe = fit(recipe.with_option(IMAGE_SIZE, size))
        figures.append(probe.figures)
        if not probe.gains_over(chosen):
            why = f"{size} px gains no more than the standard error"
            break
        chosen = probe
    reason = f"linear probes, out of fold: {', '.join(figures)}; {why}"
    recipe, _ = with_choices(recipe, [Choice(IMAGE_SIZE, chosen.size, reason)])
    return recipe, replace(chosen, seconds=time.monotonic() - began)


def fit_probe(
    recipe: Recipe,
    files: BetonSet,
    world: World,
    precision: Precision,
    stop: Callable[[], bool],
    say: Callable[[str], None],
) -> Probe:
    """The probe at the recipe's image size.

    Raises EvaluationStopped: in every process, if `stop` returned true in one of them.
    """
    size = recipe.model.image_size
    model = build_model(recipe).to(world.device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    output, shard = Output(size, world.device, precision.dtype), Shard(world.rank, world.size)
    with EvalLoader(
        files, build_policy(recipe), output, batch_size=BATCH, shard=shard, workers=recipe.data.workers or None
    ) as loader:
        next(iter(loader), None)  # the first batch of a process waits for the loader's compilation
        began = time.monotonic()
        features_ND, labels_N = pooled_features(model, loader, world, precision, stop)
        seconds = time.monotonic() - began
    fit = features_ND, labels_N, recipe.data.num_classes, recipe.train.seed
    head, seconds = world.broadcast((fit_ridge_head(*fit), seconds) if world.is_main else None)
    probe = Probe(size, features_ND, labels_N, head, seconds)
    say(f"image size {probe.figures}, about {format_duration(TRAINING_COST * seconds)} an epoch")
    return probe
