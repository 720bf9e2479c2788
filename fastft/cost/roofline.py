"""MFU (model FLOP/s over the GPU's dense peak) when training a recipe: a roofline from FLOPs and traced memory traffic.

The roofline is a yardstick, not a limit: compiled steps and steps alone have been faster
(docs/measurements/published.md). Two families of published runs show which share k of the roofline a run reaches.
fastft's own k has not been measured on a GPU yet.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fastft.cost.traffic import image_traffic
from fastft.cost.work import recipe_flops
from fastft.machine.gpus import Gpu
from fastft.model.recipe_model import recipe_arch
from fastft.recipe import Recipe


class Family(NamedTuple):
    """Published runs, and the shares of the roofline that they reached: geometric mean, slowest, fastest.

    The rows are in benchmarks/published.yaml, and a slow test computes the shares from them.
    """

    basis: str
    what: str
    gpus: str
    k: float
    slowest: float
    fastest: float


TUNED = Family("tuned", "tuned language-model trainings", "V100", 0.62, 0.47, 0.91)
VITS = Family("vits", "published ViT trainings", "V100 and A100", 0.34, 0.25, 0.45)
FAMILIES = (TUNED, VITS)
FASTEST, SLOWEST = "fastest", "slowest"  # the ends of every range of hours

# share of data-sheet bandwidth that streaming kernels sustain: 0.79 TB/s on V100, 1.75 on A100, 2.9 on H100
# (estimates)
MEMORY_SHARE = 0.87
# Share of the peak that attention's products reach in fused kernels: an estimate. CUTLASS's products were measured on
# an A100 with 20 TFLOP/s backward at 197 tokens (NVIDIA/cutlass#992) and 41 forward at 128
# (facebookresearch/xformers#387). On a V100, a share of 0.2 is 25 TFLOP/s.
ATTENTION_SHARE = 0.2
# fp32 reads and writes per trained parameter: AdamW (gradient, weight, two moments), the inf check and the EMA
UPDATE_BYTES = 48
PATHS = {"autocast": "autocast", "half": "half-precision weights"}


@dataclass(frozen=True)
class Mfu:
    """An MFU and its origin. `basis` is "given", "measured", FASTEST, SLOWEST, a family's basis, or "roofline"."""

    value: float
    basis: str
    source: str


def known_mfus(recipe: Recipe, gpu: Gpu, gpus: int) -> list[Mfu]:
    """Return the MFUs of the fastest and slowest published run, FAMILIES and the roofline, the highest last.

    The list is empty if a step's traffic cannot be counted.
    """
    roofline = roofline_mfu(recipe, gpu, gpus)
    if roofline is None:
        return []
    families = [
        Mfu(
            f.k * roofline.value,
            f.basis,
            f"{f.k:g} x roofline, the mean of {f.what} on {f.gpus} ({f.slowest:g} to {f.fastest:g})",
        )
        for f in FAMILIES
    ]
    fastest, slowest = mfu_range(roofline)
    return [fastest, *families, slowest, roofline]


def k_range(families: Sequence[Family] = FAMILIES) -> tuple[float, float]:
    """Return the fastest and the slowest published run's share of the roofline's speed."""
    return max(f.fastest for f in families), min(f.slowest for f in families)


def mfu_range(roofline: Mfu, families: Sequence[Family] = FAMILIES) -> tuple[Mfu, Mfu]:
    """Return the MFUs of the fastest and the slowest published run in these families. Ranges of hours go from one to the other.

    Args:
        roofline: the result of `roofline_mfu` for the recipe and the GPU.
    """
    fastest, slowest = k_range(families)
    return (
        Mfu(fastest * roofline.value, FASTEST, f"{fastest:g} x roofline, the fastest training of these two families"),
        Mfu(slowest * roofline.value, SLOWEST, f"{slowest:g} x roofline, the slowest training of these two families"),
    )


def roofline_mfu(recipe: Recipe, gpu: Gpu, gpus: int) -> Mfu | None:
    """Return the MFU if all parts of a step run one after another, at the rates that they sustain.

    Matrix products and attention run at their sustained rates and all other traffic at the memory's rate, without
    overlap. Returns None if a step's traffic cannot be counted.
    """
    flops, traffic = recipe_flops(recipe, recipe_arch(recipe)), image_bytes(recipe, gpu, gpus)
    if traffic is None:
        return None
    computed = (flops.train - flops.attention) / gpu.gemm_share + flops.attention / ATTENTION_SHARE
    seconds = computed / gpu.peak_flops + traffic / (gpu.bandwidth * MEMORY_SHARE)
    source = (
        f"a yardstick: {PATHS[chosen_path(gpu)]}, matrix products at {gpu.gemm_share:.0%} of the peak, attention at "
        f"{ATTENTION_SHARE:.0%}, other traffic at {MEMORY_SHARE:.0%} of {gpu.bandwidth / 1e9:,.0f} GB/s, no overlap"
    )
    return Mfu(flops.train / seconds / gpu.peak_flops, "roofline", source)


def image_bytes(recipe: Recipe, gpu: Gpu, gpus: int) -> float | None:
    """Return the memory traffic per training image outside matrix products. Returns None if it cannot be counted."""
    traced = image_traffic(recipe, chosen_path(gpu))
    if traced is None:
        return None
    return traced.bytes_per_image + UPDATE_BYTES * traced.trained_parameters * gpus / recipe.optim.batch_size


def chosen_path(gpu: Gpu) -> str:
    """Return the path that the trainer chooses: fp32 weights with a half-precision copy if the GPU has no bf16."""
    return "autocast" if gpu.bf16 else "half"


def describe_uncounted(recipe: Recipe, gpu: Gpu) -> str:
    """Say why there are no hours."""
    return (
        f"{recipe.model.arch} on {gpu.name}: not counted, as its step with {PATHS[chosen_path(gpu)]} cannot be traced. "
        "Give --mfu"
    )
