"""MFU (model FLOP/s over the GPU's dense peak) of training a recipe: a roofline from FLOPs and traced memory traffic.

The expected MFU is K times the roofline's, on every GPU. It is a model until a GPU has measured K; docs/cost.md compares it with
published runs.
"""

from dataclasses import dataclass

from fastft.cost.published import PUBLISHED_RUNS
from fastft.cost.traffic import image_traffic
from fastft.cost.work import recipe_flops
from fastft.machine.gpus import Gpu
from fastft.model.recipe_model import find_phases, recipe_arch, with_phase
from fastft.recipe import Recipe

# Expected share of the roofline. An estimate: the roofline leaves out what a step loses besides (second passes of LayerNorm's
# backward, kernels shorter than a launch, the all-reduce, the loss scaler), 5 to 8 of 44 to 55 points of MFU. timm's measured
# step of B/16 on an RTX 3090 reaches 1.0 of it.
K = 0.87

# Shares of the data sheet's peaks that large fp16/bf16 matrix products and streaming kernels sustain: 90 TFLOP/s and 0.79 TB/s
# on V100, 235 and 1.75 on A100, 630 and 2.9 on H100 (estimates; other GPUs assumed alike)
GEMM_SHARE = {"V100": 0.72, "A100": 0.75, "A100-40": 0.75, "H100": 0.64, "H200": 0.64}
DEFAULT_GEMM_SHARE = 0.70
MEMORY_SHARE = 0.87
# fp32 reads and writes per trained parameter of AdamW (gradient, weight, two moments), the inf check and the EMA
UPDATE_BYTES = 48
PATHS = {"autocast": "autocast", "half": "half-precision weights"}


@dataclass(frozen=True)
class Mfu:
    """An MFU and its origin. `basis`: given, measured, expected, roofline or published."""

    value: float
    basis: str
    source: str


def known_mfus(recipe: Recipe, gpu: Gpu, gpus: int) -> list[Mfu]:
    """Expected, roofline, and the slowest published training on that GPU if it is slower than expected.

    The first is the headline. Empty if the traffic of a step cannot be counted, as `describe_uncounted` says.
    """
    roofline = roofline_mfu(recipe, gpu, gpus)
    if roofline is None:
        return []
    expected = Mfu(K * roofline.value, "expected", f"{K:g} x roofline, an estimate")
    slowest = min((run for run in PUBLISHED_RUNS if run.gpu == gpu.name), key=lambda run: run.mfu, default=None)
    if slowest is None or slowest.mfu >= expected.value:
        return [expected, roofline]
    return [expected, roofline, Mfu(slowest.mfu, "published", f"{slowest.name}: {slowest.source}, the slowest")]


def roofline_mfu(recipe: Recipe, gpu: Gpu, gpus: int) -> Mfu | None:
    """MFU if matrix products run at their sustained rate, all other traffic at the memory's, and neither overlaps.

    None if the traffic of a step cannot be counted.
    """
    flops, traffic = recipe_flops(recipe, recipe_arch(recipe)).train, image_bytes(recipe, gpu, gpus)
    if traffic is None:
        return None
    gemm_share = GEMM_SHARE.get(gpu.name, DEFAULT_GEMM_SHARE)
    seconds = flops / (gpu.peak_flops * gemm_share) + traffic / (gpu.bandwidth * MEMORY_SHARE)
    source = (
        f"upper bound: {PATHS[chosen_path(gpu)]}, matrix products at {gemm_share:.0%} of the peak, other traffic at "
        f"{MEMORY_SHARE:.0%} of {gpu.bandwidth / 1e9:,.0f} GB/s, no overlap"
    )
    return Mfu(flops / seconds / gpu.peak_flops, "roofline", source)


def image_bytes(recipe: Recipe, gpu: Gpu, gpus: int) -> float | None:
    """Memory traffic per training image outside matrix products, the mean of all epochs; None if it cannot be counted."""
    total = 0.0
    for phase in find_phases(recipe):
        traced = image_traffic(with_phase(recipe, phase), chosen_path(gpu))
        if traced is None:
            return None
        update = UPDATE_BYTES * traced.trained_parameters * gpus / recipe.optim.batch_size
        total += phase.epochs * (traced.bytes_per_image + update)
    return total / recipe.epochs


def chosen_path(gpu: Gpu) -> str:
    """The path that the trainer chooses: fp32 weights with a half-precision copy where there is no bf16."""
    return "autocast" if gpu.bf16 else "half"


def describe_uncounted(recipe: Recipe, gpu: Gpu) -> str:
    """Why there are no hours."""
    return (
        f"{recipe.model.arch} on {gpu.name}: not counted, as its step with {PATHS[chosen_path(gpu)]} cannot be traced; "
        "give --mfu"
    )
