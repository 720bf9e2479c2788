"""MFU (model FLOP/s over the GPU's dense peak) of training a recipe: a roofline from FLOPs and traced memory traffic.

The expected MFU is K times the roofline's, on every GPU. It is a model until a GPU has measured K; docs/cost.md compares it with
published trainings.
"""

from dataclasses import dataclass

from fastft.cost.traffic import image_traffic
from fastft.cost.work import recipe_flops
from fastft.machine.gpus import Gpu
from fastft.model.recipe_model import recipe_arch
from fastft.recipe import Recipe

# Expected share of the roofline: the geometric mean of published trainings on V100 whose authors had tuned the step (benchmarks/
# published.yaml), and the lowest and the highest of them
K, K_RANGE = 0.74, (0.58, 0.94)

# Share of the data sheet's bandwidth that streaming kernels sustain: 0.79 TB/s on V100, 1.75 on A100, 2.9 on H100 (estimates)
MEMORY_SHARE = 0.87
# of the peak, by the products of attention in fused kernels: an estimate. CUTLASS's were measured on an A100 with 20 TFLOP/s
# backward at 197 tokens (NVIDIA/cutlass#992) and 41 forward at 128 (facebookresearch/xformers#387); V100's 0.2 are 25
ATTENTION_SHARE = 0.2
# fp32 reads and writes per trained parameter of AdamW (gradient, weight, two moments), the inf check and the EMA
UPDATE_BYTES = 48
PATHS = {"autocast": "autocast", "half": "half-precision weights"}


@dataclass(frozen=True)
class Mfu:
    """An MFU and its origin. `basis`: given, expected or roofline."""

    value: float
    basis: str
    source: str


def known_mfus(recipe: Recipe, gpu: Gpu, gpus: int) -> list[Mfu]:
    """The expected one, which is the headline, and the roofline's; none if the traffic of a step cannot be counted."""
    roofline = roofline_mfu(recipe, gpu, gpus)
    if roofline is None:
        return []
    spread = "tuned trainings on V100 reached {:g} to {:g}".format(*K_RANGE)
    return [Mfu(K * roofline.value, "expected", f"{K:g} x roofline: {spread}"), roofline]


def roofline_mfu(recipe: Recipe, gpu: Gpu, gpus: int) -> Mfu | None:
    """MFU if matrix products and attention run at their sustained rates, all other traffic at the memory's, without overlap.

    None if the traffic of a step cannot be counted.
    """
    flops, traffic = recipe_flops(recipe, recipe_arch(recipe)), image_bytes(recipe, gpu, gpus)
    if traffic is None:
        return None
    computed = (flops.train - flops.attention) / gpu.gemm_share + flops.attention / ATTENTION_SHARE
    seconds = computed / gpu.peak_flops + traffic / (gpu.bandwidth * MEMORY_SHARE)
    source = (
        f"upper bound: {PATHS[chosen_path(gpu)]}, matrix products at {gpu.gemm_share:.0%} of the peak, attention at "
        f"{ATTENTION_SHARE:.0%}, other traffic at {MEMORY_SHARE:.0%} of {gpu.bandwidth / 1e9:,.0f} GB/s, no overlap"
    )
    return Mfu(flops.train / seconds / gpu.peak_flops, "roofline", source)


def image_bytes(recipe: Recipe, gpu: Gpu, gpus: int) -> float | None:
    """Memory traffic per training image outside matrix products; None if it cannot be counted."""
    traced = image_traffic(recipe, chosen_path(gpu))
    if traced is None:
        return None
    return traced.bytes_per_image + UPDATE_BYTES * traced.trained_parameters * gpus / recipe.optim.batch_size


def chosen_path(gpu: Gpu) -> str:
    """The path that the trainer chooses: fp32 weights with a half-precision copy where there is no bf16."""
    return "autocast" if gpu.bf16 else "half"


def describe_uncounted(recipe: Recipe, gpu: Gpu) -> str:
    """Why there are no hours."""
    return (
        f"{recipe.model.arch} on {gpu.name}: not counted, as its step with {PATHS[chosen_path(gpu)]} cannot be traced; "
        "give --mfu"
    )
