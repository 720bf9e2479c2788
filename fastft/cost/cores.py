"""Compute how many CPU cores a machine's GPUs need: the step's images/s divided by what one core prepares."""

import math
from dataclasses import dataclass
from functools import cache

from fastft.cost.measured import step_rate
from fastft.cost.overheads import with_cores
from fastft.cost.price import MACHINE_GPUS, estimate
from fastft.cost.roofline import plan_mfus, roofline_mfu
from fastft.machine.bench_result import Result, Spread
from fastft.machine.gpus import GPUS, MAIN_GPUS, find_gpu
from fastft.model.recipe_model import recipe_arch
from fastft.recipe import load_recipe

RECIPES = ("final_b16", "final_l14")
UNLIMITED_CORES = 1e6  # so that nothing waits for the loader


@dataclass(frozen=True)
class Demand:
    """The images/s that the training step takes on a machine with `gpus` GPUs: a range if it is modelled.

    machine_cores: physical cores in a usual machine with these GPUs, or 0 if unknown.
    """

    recipe: str
    gpu: str
    gpus: int
    images_per_second: Spread  # all GPUs together
    machine_cores: float
    measured: bool = False

    def cores(self, images_per_core: float) -> Spread:
        """Return the whole cores that keep up with this demand, if one core prepares `images_per_core` a second."""
        rates = self.images_per_second
        return Spread(*(math.ceil(rate / images_per_core) for rate in (rates.median, rates.low, rates.high)))


def demands(result: Result) -> list[Demand]:
    """Return what RECIPES demand on the main GPU kinds and on the result's own GPU.

    A demand is measured if the result contains the step, else modelled.
    """
    found = []
    for name in RECIPES:
        by_gpu = {d.gpu: d for d in _modelled(name)}
        own = _measured(name, result)
        found += list((by_gpu | ({own.gpu: own} if own else {})).values())
    return found


@cache
def _modelled(name: str) -> tuple[Demand, ...]:
    """Model the demand at the MFUs to plan with. Evaluation and start-up are left out."""
    recipe, found = load_recipe(name), []
    for gpu in (GPUS[main] for main in MAIN_GPUS):
        roofline = roofline_mfu(recipe, gpu, MACHINE_GPUS)
        assert roofline is not None
        over = with_cores(UNLIMITED_CORES)
        estimates = [estimate(recipe, gpu, MACHINE_GPUS, mfu, over) for mfu in plan_mfus(roofline, gpu)]
        rates = Spread.of([MACHINE_GPUS * e.images_per_second for e in estimates])
        found.append(Demand(name, gpu.name, MACHINE_GPUS, rates, MACHINE_GPUS * gpu.cores))
    return tuple(found)


def _measured(name: str, result: Result) -> Demand | None:
    """Return the measured step on the result's GPU, times MACHINE_GPUS. Returns None if it was not measured."""
    if result.machine.gpu is None:
        return None
    recipe = load_recipe(name)
    rate, gpu = step_rate(result, recipe, recipe_arch(recipe)), find_gpu(result.machine.gpu)
    if rate is None:
        return None
    cores, where = MACHINE_GPUS * gpu.cores if gpu else 0.0, gpu.name if gpu else result.machine.gpu
    return Demand(name, where, MACHINE_GPUS, Spread.of([MACHINE_GPUS * rate]), cores, measured=True)
