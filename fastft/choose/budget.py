"""A time budget (`schedule.budget`): image size and epochs follow together from measured rates.

Linear probes measure two things at each image size: how many images they get wrong, and how long a forward pass takes. The
rates tell how many steps fit into the time that is left. Training removes some of a probe's errors, more with more steps, so
each size has an expected accuracy. How much training removes differs between datasets, while a probe's accuracy is measured on
this one. Trainings are therefore compared by their expected accuracy minus part of its spread, and the best one is taken. A
probe at a large size can be better than any training that fits. Then the run stops at this probe, or at a probe for a still
larger size if the time left allows one. If a training is better, the largest probe is compared with the trained model at the
end (`fastft.run.chosen_weights`).
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from beton_tools.base.console import counted, format_duration
from fastft.choose.image_size import TRAINING_COST, TriedSizes, try_sizes
from fastft.evaluate.linear_probe import LinearProbe
from fastft.recipe import AskedRecipe, Choice
from fastft.recipe.constants import EPOCHS, IMAGE_SIZE, SHORTEST_GAINING_STEPS, STOP_EPOCH

# Steps -> fraction of a linear probe's errors that training removes. These are means over runs on several datasets
# (docs/measurements/photos.md, A budget in time). Values in between are interpolated over the logarithm of the steps. Runs
# with about 20 steps lost accuracy, because they end while the loss is still above its initial value.
REMOVED = {SHORTEST_GAINING_STEPS: 0.0, 50: 0.14, 70: 0.28, 200: 0.3, 500: 0.34}
# The fraction's standard deviation over datasets, and which multiple of it is subtracted from the mean: the largest that
# costs no accuracy on the datasets by which it was chosen (same page).
SPREAD, CAUTION = 0.17, 0.25
PROBE_SHARE = 0.1  # one more probe may take this fraction of the time left
LAST_SHARE = 0.4  # the same if nothing will be trained, or if the probe may be better than any training
# This fraction of the time left is not planned, because start-up and checkpoints take time and rates vary. On a busy CPU,
# 118 planned seconds took 153.
RESERVED = 0.2


@dataclass(frozen=True)
class Plan:
    """A training at one image size, or the linear probe there (0 epochs).

    Attributes:
        top1: expected accuracy in percent.
        spread: how many points it is expected to differ between datasets. 0 for a probe, because a probe is measured.
        seconds: time for training and evaluation.
    """

    size: int
    epochs: int
    top1: float
    spread: float
    seconds: float

    @property
    def compared(self) -> float:
        """The accuracy by which plans are compared."""
        return self.top1 - CAUTION * self.spread

    def __str__(self) -> str:
        if not self.epochs:
            return f"the linear probe at {self.size} px {self.top1:.1f} %"
        length = counted(self.epochs, "epochs")
        return f"{length} at {self.size} px {self.top1:.1f} ± {self.spread:.1f} % in {format_duration(self.seconds)}"


@dataclass(frozen=True)
class Budget:
    """The work that must fit into the time budget.

    Attributes:
        left: returns the seconds that are left, the same in all processes.
        evaluated: images in one evaluation.
        before: images in forward passes that are still made before training.
    """

    recipe: AskedRecipe
    left: Callable[[], float]
    evaluated: int
    before: int

    def fitting(self, left: float, forward: float, size: int) -> tuple[int, float]:
        """Return (epochs that fit, seconds for them and their evaluations).

        If the recipe sets the number of epochs, the result is this number or 0.

        Args:
            left: seconds.
            forward: seconds that a forward pass takes for each image.
            size: image size in training, at which this was measured.
        """
        recipe = self.recipe
        trained = recipe.steps_per_epoch() * recipe.optim.batch_size
        passes = 2 if recipe.train.eval_weights == "both" else 1
        evaluated = passes * self.evaluated * ((recipe.train.eval_image_size or size) / size) ** 2
        epoch = forward * (TRAINING_COST * trained + evaluated / recipe.train.eval_every)
        fit = int(((1 - RESERVED) * left - forward * self.before) / epoch)
        epochs = max(0, min(recipe.epochs, fit))
        if EPOCHS not in recipe.automatic and fit < recipe.epochs:
            epochs = 0
        return epochs, epochs * epoch


def probe_within(
    budget: Budget, fit: Callable[[AskedRecipe], LinearProbe], tries_sizes: bool, begun: TriedSizes | None = None
) -> TriedSizes:
    """Fit linear probes at the recipe's image size, or at several sizes as long as they take little of the time left.

    begun: an earlier result. It is continued with the time that training does not need.
    """
    recipe = budget.recipe
    if not tries_sizes:
        probe = fit(recipe)
        return TriedSizes([probe], [probe], "The image size is set")

    def refuse(size: int, forward: float, so_far: TriedSizes) -> str:
        left = max(0.0, budget.left())
        if forward <= PROBE_SHARE * left:
            return ""
        if forward <= LAST_SHARE * left and (begun is not None or _may_surpass(budget, so_far, left, forward)):
            return ""
        return (
            f"A probe at {size} px would take {format_duration(forward)} of the {format_duration(left)} that are left"
        )

    return try_sizes(recipe, fit, refuse, begun)


def choose_within(budget: Budget, sizes: TriedSizes) -> tuple[list[Choice], LinearProbe]:
    """Return (choices for the automatic options that a budget decides, the probe at the chosen size)."""
    recipe, by_size = budget.recipe, {probe.size: probe for probe in sizes.gaining}
    probes, trainings = [_plan(p, 0, 0.0, recipe) for p in sizes.gaining], _trainings(budget, sizes, budget.left())
    probe, best = _best(probes), _best(trainings or probes)
    gained = (best.compared - probe.compared) / 100 * by_size[probe.size].images
    why = f"the best expected accuracy within {recipe.schedule.budget}, less {CAUTION:g} times its spread over datasets"
    if recipe.epochs == 0:
        best, why = probe, f"the best linear probe within {recipe.schedule.budget}, because nothing is trained"
    elif STOP_EPOCH in recipe.automatic and gained < 1:
        best, why = probe, "the linear probe is as good as any training that fits is expected to become"
    elif not trainings:  # the epochs or where they stop are set
        best, why = Plan(sizes.tried[0].size, 1, 0.0, 0.0, 0.0), f"no training fits into {recipe.schedule.budget}"
    compared = "; ".join(map(str, [*trainings, probe]))
    reason = f"{why} ({compared}). {sizes.reason[0].upper()}{sizes.reason[1:]}"
    evidence = {"plans": [asdict(plan) for plan in [*trainings, *probes]], "probes": sizes.evidence}
    values = {
        IMAGE_SIZE: best.size,
        EPOCHS: best.epochs or recipe.schedule.epochs,
        STOP_EPOCH: None if best.epochs else 0,
    }
    choices = [
        Choice(option, value, reason, evidence) for option, value in values.items() if option in recipe.automatic
    ]
    return choices, by_size[best.size]


def choose_epochs(budget: Budget, forward: float) -> list[Choice]:
    """Choose the epochs for a run without a linear probe, at least one. forward: seconds per image."""
    recipe = budget.recipe
    if EPOCHS not in recipe.automatic:
        return []
    epochs, seconds = budget.fitting(budget.left(), forward, recipe.model.image_size)
    fits = f"these epochs fit into {recipe.schedule.budget} and take about {format_duration(seconds)}"
    reason = fits if epochs else f"not even one epoch fits into {recipe.schedule.budget}"
    return [Choice(EPOCHS, max(1, epochs), reason, {"forward_seconds": forward})]


def larger_probe(sizes: TriedSizes, chosen: LinearProbe) -> LinearProbe | None:
    """Return the probe at the largest size that gained, if it is larger than the chosen one."""
    return sizes.gaining[-1] if sizes.gaining[-1].size > chosen.size else None


def _trainings(budget: Budget, sizes: TriedSizes, left: float) -> list[Plan]:
    """Return the longest training that fits at each size. left: seconds."""
    largest = sizes.gaining[-1]
    scored = budget.evaluated * largest.seconds / largest.images  # for the largest probe, if another size is trained
    fitting = [
        (p, *budget.fitting(left - scored * (p is not largest), p.seconds / p.images, p.size)) for p in sizes.gaining
    ]
    return [_plan(*fits, budget.recipe) for fits in fitting if fits[1]]


def _may_surpass(budget: Budget, sizes: TriedSizes, left: float, forward: float) -> bool:
    """Return True if one more probe may beat any training, by more than the training would lose with the probe's seconds.

    The next probe is assumed to gain as much over the last one as that gained over the one before.
    """
    trainings = _trainings(budget, sizes, left)
    if len(sizes.gaining) < 2 or not trainings:
        return False
    before, last = (_plan(p, 0, 0.0, budget.recipe) for p in sizes.gaining[-2:])
    now, shorter = _best(trainings).compared, _best([*_trainings(budget, sizes, left - forward), last]).compared
    return 2 * last.top1 - before.top1 - now > now - shorter


def _best(plans: Sequence[Plan]) -> Plan:
    """Return the best plan. The smaller size wins a draw."""
    return max(plans, key=lambda plan: (round(plan.compared, 9), -plan.size))


def _plan(probe: LinearProbe, epochs: int, seconds: float, recipe: AskedRecipe) -> Plan:
    """Return the plan for a training that starts from a probe, or for the probe alone (0 epochs)."""
    wrong = 100 * (1 - float(probe.head.right_N.mean()))
    gain = expected_gain(epochs * recipe.steps_per_epoch())
    return Plan(probe.size, epochs, 100 - wrong * (1 - gain), wrong * SPREAD if epochs else 0.0, seconds)


def expected_gain(steps: int) -> float:
    """Return the fraction of a probe's errors that training removes. It is negative where training is too short."""
    known = np.log(list(REMOVED))
    slope = REMOVED[50] / (known[1] - known[0])
    if not steps:
        return 0.0
    if (at := np.log(steps)) < known[0]:
        return float(slope * (at - known[0]))
    return float(np.interp(at, known, list(REMOVED.values())))
