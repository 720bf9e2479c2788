"""Automatic image size (`model.image_size=auto`): try larger sizes while a linear probe gains from them.

A probe of the frozen tower costs one forward pass over the training images. At the chosen size it becomes the head that
the run starts from. A larger image size can gain more than any schedule, even above the pixels that the images have.
Measurements are in docs/measurements/photos.md.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from beton_tools.base.console import format_duration
from fastft.evaluate.linear_probe import LinearProbe
from fastft.model.recipe_model import recipe_arch
from fastft.recipe import AskedRecipe, Choice
from fastft.recipe.constants import IMAGE_SIZE, PROBED_SIZES

LONG_SECONDS = 3600  # without a budget, a larger size is not tried if training at it would take longer
TRAINING_COST = 3  # per image, in forward passes. Measured on a CPU: 2.8 to 3.4 at 42 to 112 px


@dataclass(frozen=True)
class TriedSizes:
    """Linear probes in the order of their sizes.

    Attributes:
        gaining: the first, and each one whose loss is lower than the one before it.
        why: why no larger size was tried, in a sentence.
    """

    tried: list[LinearProbe]
    gaining: list[LinearProbe]
    why: str

    @property
    def reason(self) -> str:
        return f"linear probes, scored out of fold: {', '.join(map(describe_probe, self.tried))}. {self.why}"

    @property
    def evidence(self) -> list[dict[str, float]]:
        return [_measured(probe) for probe in self.tried]


def choose_image_size(
    recipe: AskedRecipe, fit: Callable[[AskedRecipe], LinearProbe]
) -> tuple[AskedRecipe, LinearProbe]:
    """Return (the recipe with the chosen size, the probe at that size), the same in all processes.

    Args:
        fit: returns the probe at a recipe's image size.
    """

    def refuse(size: int, forward: float, _: TriedSizes) -> str:
        seconds = TRAINING_COST * forward * recipe.epochs
        return f"Training at {size} px would take about {format_duration(seconds)} here" * (seconds > LONG_SECONDS)

    sizes = try_sizes(recipe, fit, refuse)
    chosen = sizes.gaining[-1]
    return recipe.with_choices(Choice(IMAGE_SIZE, chosen.size, sizes.reason, sizes.evidence)), chosen


def try_sizes(
    recipe: AskedRecipe,
    fit: Callable[[AskedRecipe], LinearProbe],
    refuse: Callable[[int, float, TriedSizes], str],
    begun: TriedSizes | None = None,
) -> TriedSizes:
    """Fit probes at larger and larger sizes.

    Args:
        fit: returns the probe at a recipe's image size.
        refuse: returns why a size is not tried, or "". It gets the size, the seconds that a forward pass over the
            training images would take, and what was tried so far.
        begun: an earlier result, which is continued.
    """
    patch = recipe_arch(recipe).patch_size
    sizes = sorted({max(1, round(size / patch)) * patch for size in PROBED_SIZES})
    if begun is None:
        first = fit(recipe.with_option(IMAGE_SIZE, sizes[0]))
        begun = TriedSizes([first], [first], "")
    tried, gaining = list(begun.tried), list(begun.gaining)
    probe = tried[-1]
    if probe is not gaining[-1]:
        return begun
    for size in (size for size in sizes if size > probe.size):
        if why := refuse(size, probe.seconds * (size / probe.size) ** 2, TriedSizes(tried, gaining, "")):
            return TriedSizes(tried, gaining, why)
        probe = fit(recipe.with_option(IMAGE_SIZE, size))
        tried.append(probe)
        if not gains_over(probe, gaining[-1]):
            return TriedSizes(tried, gaining, f"At {size} px the loss is not lower by more than the standard error")
        gaining.append(probe)
    return TriedSizes(tried, gaining, "No larger size is tried")


def gains_over(larger: LinearProbe, smaller: LinearProbe) -> bool:
    """Return True if the loss at the larger size is lower by more than the standard error of the paired difference."""
    gain_N = smaller.head.losses_N - larger.head.losses_N
    return bool(gain_N.mean() > gain_N.std() / np.sqrt(len(gain_N)))


def describe_probe(probe: LinearProbe) -> str:
    measured = _measured(probe)
    return f"{probe.size} px {measured['top1']:.1f} % (loss {measured['loss']:.3f})"


def _measured(probe: LinearProbe) -> dict[str, float]:
    """Return size, accuracy in percent and loss on images that the probe was not fitted to."""
    head = probe.head
    return {"size": probe.size, "top1": 100 * float(head.right_N.mean()), "loss": float(head.losses_N.mean())}
