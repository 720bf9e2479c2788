"""What a recipe costs: FLOPs over what a GPU sustains. A model, not a measurement, and marked so wherever it is shown."""

from dataclasses import dataclass

from fastft.config import Recipe
from fastft.model import Arch, Flops, count_flops
from fastft.report.hardware import GPUS, Gpu

VAL_IMAGES = 50_000  # ILSVRC2012 validation
REFERENCE_MFU = 0.143  # of the paper's own B/16 run on A100 (424 images/s per GPU in its log)


@dataclass(frozen=True)
class Work:
    """Floating-point operations of a whole run."""

    train: float
    evaluate: float

    @property
    def total(self) -> float:
        return self.train + self.evaluate


def recipe_flops(recipe: Recipe, arch: Arch) -> Flops:
    """Per image, with the recipe's frozen blocks and patch dropout."""
    trainable = recipe.model.trainable_layers
    frozen = 0 if trainable is None else max(0, arch.layers - trainable)
    return count_flops(arch, recipe.data.num_classes, frozen_blocks=frozen, patch_dropout=recipe.model.patch_dropout)


def recipe_work(recipe: Recipe, arch: Arch, val_images: int = VAL_IMAGES) -> Work:
    """Training steps, and forward passes of raw and EMA model over the validation images at every evaluation."""
    flops = recipe_flops(recipe, arch)
    images = recipe.epochs * recipe.steps_per_epoch() * recipe.optim.batch_size
    evaluations = -(-recipe.epochs // recipe.train.eval_every)
    models = 2 if recipe.ema.decay > 0 else 1
    full_forward = count_flops(arch, recipe.data.num_classes).forward
    return Work(images * flops.train, evaluations * models * val_images * full_forward)


def gpu_hours(work: Work, gpu: Gpu, mfu: float) -> float:
    """Hours of one GPU. Evaluation runs forward only and is taken at the same share of the peak."""
    return work.total / (gpu.peak_flops * mfu) / 3600


def predicted_gpu_hours(work: Work) -> dict[str, dict[str, float]]:
    """By GPU kind: hours at the MFU this trainer aims at, and at the reference's."""
    return {
        name: {
            "mfu": gpu.target_mfu,
            "hours": gpu_hours(work, gpu, gpu.target_mfu),
            "hours_at_reference_mfu": gpu_hours(work, gpu, REFERENCE_MFU),
        }
        for name, gpu in GPUS.items()
    }
