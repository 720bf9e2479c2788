"""What a recipe costs: FLOPs over what a GPU sustains, plus what a run spends beside its training steps.

A model, not a measurement, and marked so wherever it is shown. tests/cost/test_cost.py holds it against the
wall times in the logs of the paper's own runs.
"""

from dataclasses import asdict, dataclass
from typing import Any

from fastft.config import Recipe
from fastft.cost.overheads import FASTFT, Overheads, cores_per_gpu, with_cores
from fastft.imagenet import assumed_val_images
from fastft.machine.gpus import GPUS, MAIN_GPUS, Gpu
from fastft.model import Arch, Flops, count_flops, count_frozen_blocks, load_arch

MACHINE_GPUS = 8  # of the usual cloud machine
REFERENCE_MFU = 0.143  # of the paper's own B/16 run on A100 (424 images/s per GPU in its log)
REFERENCE_MFU_L14 = 0.176  # of its L/14 run (113 images/s per GPU)
L14_WIDTH = 1024


@dataclass(frozen=True)
class Mfu:
    """Model FLOP/s over the GPU's dense peak, and where that number comes from."""

    value: float
    basis: str  # measured, published, or reference
    source: str


# The best published figure for training a transformer of this kind on that GPU.
PUBLISHED_MFU = {
    "V100": Mfu(
        0.52, "published", "DeepSpeed BERT-Large, sequence 128: 64-66 TFLOP/s (deepspeed.ai, 2020-05)"
    ),
    "A100": Mfu(0.445, "published", "NeMo ViT-g/14 on a DGX A100: 693 images/s (NeMo performance page)"),
    "H100": Mfu(0.289, "published", "NeMo ViT-g/14 on a DGX H100: 1,428 images/s (NeMo performance page)"),
}


@dataclass(frozen=True)
class Work:
    """Floating-point operations of a whole run."""

    train: float
    evaluate: float

    @property
    def total(self) -> float:
        return self.train + self.evaluate


@dataclass(frozen=True)
class Parts:
    """Wall seconds of a run, by what they go to."""

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
    """One recipe on `gpus` GPUs at one MFU."""

    mfu: Mfu
    parts: Parts
    gpus: int
    images_per_second: float  # per GPU while training, data stalls included

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


def recipe_flops(recipe: Recipe, arch: Arch) -> Flops:
    """Per image, with the recipe's frozen blocks and patch dropout."""
    frozen = count_frozen_blocks(arch.layers, recipe.model.trainable_layers)
    return count_flops(
        arch, recipe.data.num_classes, frozen_blocks=frozen, patch_dropout=recipe.model.patch_dropout
    )


def recipe_work(recipe: Recipe, arch: Arch, val_images: int | None = None) -> Work:
    """Training steps, and forward passes of raw and EMA model over the validation images, each evaluation."""
    full_forward = count_flops(arch, recipe.data.num_classes).forward
    images = val_images or assumed_val_images(recipe)
    evaluated = recipe.evaluations * evaluated_models(recipe) * images
    return Work(train_images(recipe) * recipe_flops(recipe, arch).train, evaluated * full_forward)


def train_images(recipe: Recipe) -> int:
    return recipe.epochs * recipe.steps_per_epoch() * recipe.optim.batch_size


def evaluated_models(recipe: Recipe) -> int:
    """Raw, and EMA where there is one."""
    return 2 if recipe.ema.decay > 0 else 1


def reference_mfu(arch: Arch) -> Mfu:
    """What the paper's own run of about this size reached on A100."""
    large = arch.width >= L14_WIDTH
    name, value = ("L/14", REFERENCE_MFU_L14) if large else ("B/16", REFERENCE_MFU)
    return Mfu(value, "reference", f"the paper's own {name} run on 8 A100, from its log")


def estimate(
    recipe: Recipe, gpu: Gpu, gpus: int, mfu: Mfu, over: Overheads = FASTFT, val_images: int | None = None
) -> Estimate:
    """Wall time of a recipe. Evaluation runs forward at the MFU of training, or as fast as its loader.

    val_images: default as `assumed_val_images`.
    """
    arch = load_arch(recipe.model.arch).at(recipe.model.image_size)
    val_images = val_images or assumed_val_images(recipe)
    work = recipe_work(recipe, arch, val_images)
    sustained = gpus * gpu.peak_flops * mfu.value
    train = work.train / sustained
    loading = train_images(recipe) / (gpus * over.loader_rate)
    stall = max(0.0, loading - train)
    parts = Parts(
        train=train,
        stall=stall,
        evaluate=_evaluation_seconds(recipe, work.evaluate / sustained, gpus, over, val_images),
        checkpoint=_checkpoint_seconds(recipe, arch, over),
        start=over.start_seconds,
    )
    return Estimate(mfu, parts, gpus, train_images(recipe) / (train + stall) / gpus)


def _evaluation_seconds(recipe: Recipe, compute: float, gpus: int, over: Overheads, val_images: int) -> float:
    passes = recipe.evaluations * (evaluated_models(recipe) if over.pass_per_model else 1)
    loading = passes * val_images / (gpus * over.eval_loader_rate)
    return max(compute, loading) + passes * over.pass_start_seconds


def _checkpoint_seconds(recipe: Recipe, arch: Arch, over: Overheads) -> float:
    copies = 1 + 2 + (recipe.ema.decay > 0)  # weights, two Adam moments, EMA; all fp32
    every = recipe.train.checkpoint_steps
    within = (
        (recipe.steps_per_epoch() - 1) // every if every else 0
    )  # within an epoch, beside the one at its end
    size = 4 * copies * count_parameters(arch, recipe.data.num_classes)
    return recipe.epochs * (1 + within) * size / over.checkpoint_bytes_per_second


def count_parameters(arch: Arch, num_classes: int) -> int:
    """Of tower and head: matrices and positions; biases and norms (0.1 %) are left out."""
    return arch.parameters + arch.width * num_classes


def predict(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """By GPU kind, on a machine with eight: hours at the best MFU published for it, and at that of the paper's own runs.

    limited_by is of the former.
    """
    reference = reference_mfu(load_arch(recipe.model.arch))
    predicted = {}
    for name in MAIN_GPUS:
        gpu = GPUS[name]
        over, published = with_cores(FASTFT, cores_per_gpu(name)), PUBLISHED_MFU[name]
        best, slow = (estimate(recipe, gpu, MACHINE_GPUS, mfu, over) for mfu in (published, reference))
        predicted[name] = {
            "mfu": published.value,
            "hours": best.gpu_hours,
            "limited_by": best.limited_by,
            "reference_mfu": reference.value,
            "hours_at_reference_mfu": slow.gpu_hours,
        }
    return predicted
