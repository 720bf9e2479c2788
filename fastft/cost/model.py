"""The cost of a recipe: FLOPs over peak times MFU, plus evaluation, checkpoints and start-up.

A model, not a measurement, and marked as such wherever it is shown. tests/cost/test_cost.py compares it with the wall times in
the logs of the paper's own runs.
"""

from dataclasses import asdict, dataclass
from typing import Any

from fastft.cost.mfu import PUBLISHED_MFU, Mfu, known_mfus
from fastft.cost.overheads import FASTFT, Overheads, cores_per_gpu, with_cores
from fastft.cost.work import count_parameters, evaluated_models, phase_flops, recipe_work, train_images
from fastft.machine.gpus import GPUS, MAIN_GPUS, Gpu
from fastft.model import TowerArch, load_arch
from fastft.model.phases import find_phases
from fastft.recipe import Recipe
from fastft.recipe.imagenet import assumed_val_images

MACHINE_GPUS = 8  # of a usual cloud machine


@dataclass(frozen=True)
class Parts:
    """Wall seconds of a run by activity."""

    train: float  # steps at the MFU
    stall: float  # steps waiting for a loader slower than the GPUs
    evaluate: float
    checkpoint: float
    start: float

    @property
    def total(self) -> float:
        return self.train + self.stall + self.evaluate + self.checkpoint + self.start


@dataclass(frozen=True)
class Estimate:
    """Estimate for one recipe on `gpus` GPUs at one MFU."""

    mfu: Mfu
    parts: Parts
    gpus: int
    images_per_second: float  # per GPU while training, including data stalls

    @property
    def wall_hours(self) -> float:
        return self.parts.total / 3600

    @property
    def gpu_hours(self) -> float:
        return self.wall_hours * self.gpus

    @property
    def limited_by(self) -> str:
        return "loader" if self.parts.stall > 0 else "GPU"

    def as_dict(self, price: float | None) -> dict[str, Any]:
        """Plain values for JSON; `price` is money per GPU-hour."""
        return {
            **asdict(self.mfu),
            "wall_hours": self.wall_hours,
            "gpu_hours": self.gpu_hours,
            "money": None if price is None else self.gpu_hours * price,
            "images_per_second_per_gpu": self.images_per_second,
            "limited_by": self.limited_by,
            "seconds": asdict(self.parts),
        }


def estimate(
    recipe: Recipe, gpu: Gpu, gpus: int, mfu: Mfu, over: Overheads = FASTFT, val_images: int | None = None
) -> Estimate:
    """Wall time of a recipe. Evaluation runs at the MFU of training, or at the speed of its loader.

    val_images: default `assumed_val_images`.
    """
    arch = load_arch(recipe.model.arch).at(recipe.model.image_size)
    val_images = val_images or assumed_val_images(recipe)
    work = recipe_work(recipe, arch, val_images)
    sustained = gpus * gpu.peak_flops * mfu.value
    train = work.train / sustained
    stall = _stall_seconds(recipe, arch, sustained, gpus * over.loader_rate)
    parts = Parts(
        train=train,
        stall=stall,
        evaluate=_evaluation_seconds(recipe, work.evaluate / sustained, gpus, over, val_images),
        checkpoint=_checkpoint_seconds(recipe, arch, over),
        start=over.start_seconds,
    )
    return Estimate(mfu, parts, gpus, train_images(recipe) / (train + stall) / gpus)


def _stall_seconds(recipe: Recipe, arch: TowerArch, sustained: float, loader_rate: float) -> float:
    """Seconds that the GPUs wait for the loader: in each phase the excess of its time over theirs."""
    stall = 0.0
    for phase in find_phases(recipe, arch):
        images = phase.epochs * train_images(recipe) / recipe.epochs
        stall += images * max(0.0, 1 / loader_rate - phase_flops(recipe, arch, phase).train / sustained)
    return stall


def _evaluation_seconds(recipe: Recipe, compute: float, gpus: int, over: Overheads, val_images: int) -> float:
    passes = recipe.evaluations * (evaluated_models(recipe) if over.pass_per_model else 1)
    loading = passes * val_images / (gpus * over.eval_loader_rate)
    return max(compute, loading) + passes * over.pass_start_seconds


def _checkpoint_seconds(recipe: Recipe, arch: TowerArch, over: Overheads) -> float:
    copies = 1 + 2 + (recipe.ema.decay > 0)  # weights, two Adam moments, EMA; all fp32
    every = recipe.train.checkpoint_steps
    # within an epoch, besides the one at its end
    within = (recipe.steps_per_epoch() - 1) // every if every else 0
    size = 4 * copies * count_parameters(arch, recipe.data.num_classes)
    return recipe.epochs * (1 + within) * size / over.checkpoint_bytes_per_second


def predict(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """GPU-hours by GPU name on eight GPUs of that kind, at every known MFU.

    Keys per GPU: basis, mfu, hours, limited_by of the headline (the first of `known_mfus`), and `estimates`, a row with the
    same keys per MFU.
    """
    predicted = {}
    for gpu in GPUS.values():
        rows = [_row(recipe, gpu, mfu) for mfu in known_mfus(recipe, gpu, MACHINE_GPUS)]
        predicted[gpu.name] = {**rows[0], "estimates": rows}
    return predicted


def predict_published(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Cost on each of MAIN_GPUS at the MFU published for a ViT: basis, mfu, hours, limited_by."""
    return {name: _row(recipe, GPUS[name], PUBLISHED_MFU[name]) for name in MAIN_GPUS}


def _row(recipe: Recipe, gpu: Gpu, mfu: Mfu) -> dict[str, Any]:
    found = estimate(recipe, gpu, MACHINE_GPUS, mfu, with_cores(FASTFT, cores_per_gpu(gpu.name)))
    return {"basis": mfu.basis, "mfu": mfu.value, "hours": found.gpu_hours, "limited_by": found.limited_by}
