"""Assumptions that a cost needs beside the training steps: loader rates, start-up times and validation images."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from beton_tools.base.typed_json import Document
from fastft.cost.measured import Measured
from fastft.machine.gpus import Gpu
from fastft.recipe import Recipe
from fastft.recipe.constants import IMAGENET_TRAIN_SIZE
from fastft.recipe.training_images import assumed_val_images

# Images/s per core if the GPU augments, and per core for whole images in evaluation (measured 2026-11-26 on ImageNet
# with its longest side at 500 px, at 224 px).
IMAGES_PER_CORE, EVAL_IMAGES_PER_CORE = 2312.0, 1240.0
SOURCES = {
    "loader_rate": "training images/s that the loader delivers per GPU",
    "eval_loader_rate": "validation images/s that the loader delivers per GPU",
    "pass_start_seconds": "seconds to start one pass over the validation images",
    "start_seconds": "process start, JIT compilation, weights, first batch, in seconds",
}


class Assumption(Document):
    """An input to the cost model. basis: "assumed", "measured" or "given"."""

    name: str
    what: str
    value: float
    basis: str


@dataclass(frozen=True)
class Overheads:
    """Rates in images/s per GPU, and times outside the steps. measured: name -> how it was measured, if not assumed."""

    loader_rate: float = IMAGES_PER_CORE * Gpu.cores
    eval_loader_rate: float = EVAL_IMAGES_PER_CORE * Gpu.cores
    pass_start_seconds: float = 2.0  # assumed: the loader is kept between evaluations
    start_seconds: float = 120.0  # assumed, once
    measured: Mapping[str, str] = field(default_factory=dict)

    def describe(self) -> list[Assumption]:
        return [
            Assumption(
                name=name,
                what=f"{what}, {self.measured[name]}" if name in self.measured else what,
                value=getattr(self, name),
                basis="measured" if name in self.measured else "assumed",
            )
            for name, what in SOURCES.items()
        ]


FASTFT = Overheads()


def val_images_row(recipe: Recipe, given: int | None = None) -> Assumption:
    """Return the number of validation images as an assumption."""
    name, what, train_size = "val_images", "validation images", recipe.data.train_size
    if given is not None:
        return Assumption(name=name, what=what, value=given, basis="given")
    same = train_size == IMAGENET_TRAIN_SIZE
    rule = "as in ImageNet" if same else f"in ImageNet's proportion to {train_size:,} training images"
    return Assumption(name=name, what=f"{what}, {rule}", value=assumed_val_images(recipe), basis="assumed")


def with_cores(cores: float) -> Overheads:
    return replace(FASTFT, loader_rate=IMAGES_PER_CORE * cores, eval_loader_rate=EVAL_IMAGES_PER_CORE * cores)


def with_measured(measured: Measured, cores: float) -> Overheads:
    """Return the rates for `cores` cores per GPU, extrapolated from one core's measured rate where there is one."""
    rates = {"loader_rate": measured.loader, "eval_loader_rate": measured.evaluation}
    known = {name: rate for name, rate in rates.items() if rate is not None}
    how = {name: f"extrapolated to {cores:g} cores from {rate.how}" for name, rate in known.items()}
    return replace(with_cores(cores), measured=how, **{name: rate.value * cores for name, rate in known.items()})
