"""MFU (model FLOP/s over the GPU's dense peak) when training a recipe: a roofline from FLOPs and traced memory traffic.

The roofline is a yardstick, not a limit: steps alone have been faster (docs/measurements/published.md). Published runs
that resemble fastft's show which fraction k of the roofline a run reaches. fastft's own k has not been measured on a GPU
yet.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from fastft.cost.traffic import image_traffic
from fastft.cost.work import recipe_flops
from fastft.machine.gpus import Gpu
from fastft.model.recipe_model import recipe_arch
from fastft.recipe import Recipe


class Plan(NamedTuple):
    """The fractions of the roofline to plan with, from the slowest and the fastest published run that resembles fastft's.

    A run resembles fastft's if it trains a transformer, size S to L, without hand-written kernels, on one GPU or on one
    machine with eight. Its speed is divided by the roofline for its precision. The rows are in benchmarks/published.yaml,
    and a slow test computes the fractions from them.
    """

    name: str  # the GPU in published.yaml
    slowest: float
    slowest_run: str
    fastest: float
    fastest_run: str
    gpus: tuple[str, ...]  # GPUs that are planned with these fractions

    @property
    def middle(self) -> float:
        """The geometric mean of the slowest and the fastest."""
        return math.sqrt(self.slowest * self.fastest)


PAPER_B16 = "this paper's own B/16"
PLANS = (
    Plan("V100", 0.37, f"{PAPER_B16} on 8 V100", 0.55, "Hugging Face's BERT-large in PyTorch on a V100",
         ("V100", "V100-PCIe", "V100S", "T4", "P100")),
    # for A100, no run with a compiled step has been published
    Plan("A100", 0.28, f"{PAPER_B16} on 8 A100", 0.45, "DeiT-B on 8 V100, the fastest ViT without a compiled step",
         ("A100", "A100-40", "A10", "RTX3090")),
    Plan("H100", 0.43, "ViT-5-Small on 8 H100, compiled", 0.67, "ViT-5-Base on 8 H100, compiled",
         ("H100", "H100-PCIe", "H100-NVL", "H200-NVL", "H200", "B200", "L4", "L40S", "RTX4090", "RTX5090")),
)  # fmt: skip
FASTEST, MIDDLE, SLOWEST = "fastest", "middle", "slowest"  # both ends of a range in hours, and their geometric mean

# Streaming kernels sustain this fraction of data-sheet bandwidth: 0.79 TB/s on V100, 1.75 on A100, 2.9 on H100
# (estimates).
MEMORY_SHARE = 0.87
# Attention's products reach this fraction of the peak in fused kernels (an estimate). CUTLASS's products were measured on
# an A100 with 20 TFLOP/s backward at 197 tokens (NVIDIA/cutlass#992) and 41 forward at 128
# (facebookresearch/xformers#387). On a V100, 0.2 is 25 TFLOP/s.
ATTENTION_SHARE = 0.2
# fp32 reads and writes per trained parameter: AdamW (gradient, weight, two moments), the inf check and the EMA
UPDATE_BYTES = 48
PATHS = {"autocast": "autocast", "half": "half-precision weights"}


@dataclass(frozen=True)
class Mfu:
    """An MFU and its origin. `basis` is "given", "measured", FASTEST, MIDDLE, SLOWEST or "roofline"."""

    value: float
    basis: str
    source: str


def known_mfus(recipe: Recipe, gpu: Gpu, gpus: int) -> list[Mfu]:
    """Return the MFUs to plan with and the roofline.

    The list is empty if a step's traffic cannot be counted.
    """
    roofline = roofline_mfu(recipe, gpu, gpus)
    return [] if roofline is None else [*plan_mfus(roofline, gpu), roofline]


def plan_of(gpu: Gpu) -> Plan:
    """Return the fractions of the roofline to plan with on this GPU."""
    return next(plan for plan in PLANS if gpu.name in plan.gpus)


def plan_mfus(roofline: Mfu, gpu: Gpu) -> tuple[Mfu, Mfu, Mfu]:
    """Return the MFUs to plan with: FASTEST, MIDDLE and SLOWEST. Ranges in hours go from the first to the last.

    Args:
        roofline: the result of `roofline_mfu` for the recipe and the GPU.
    """
    plan = plan_of(gpu)
    why = {
        FASTEST: (plan.fastest, f"as {plan.fastest_run}"),
        MIDDLE: (plan.middle, "the geometric mean of the other two"),
        SLOWEST: (plan.slowest, f"as {plan.slowest_run}"),
    }
    fastest, middle, slowest = (
        Mfu(k * roofline.value, basis, f"{k:.2f} x roofline, {text}") for basis, (k, text) in why.items()
    )
    return fastest, middle, slowest


def roofline_mfu(recipe: Recipe, gpu: Gpu, gpus: int, path: str | None = None) -> Mfu | None:
    """Return the MFU if all parts of a step run one after another, each at the rate that it sustains.

    Matrix products and attention run at their sustained rates and all other traffic at the memory's rate, without
    overlap. Returns None if a step's traffic cannot be counted.

    Args:
        path: a key in PATHS. None uses the path that the trainer chooses.
    """
    path = path or chosen_path(gpu)
    flops, traffic = recipe_flops(recipe, recipe_arch(recipe)), image_bytes(recipe, path, gpus)
    if traffic is None:
        return None
    computed = (flops.train - flops.attention) / gpu.gemm_share + flops.attention / ATTENTION_SHARE
    seconds = computed / gpu.peak_flops + traffic / (gpu.bandwidth * MEMORY_SHARE)
    source = (
        f"a yardstick: {PATHS[path]}, matrix products at {gpu.gemm_share:.0%} of the peak, attention at "
        f"{ATTENTION_SHARE:.0%}, other traffic at {MEMORY_SHARE:.0%} of {gpu.bandwidth / 1e9:,.0f} GB/s, no overlap"
    )
    return Mfu(flops.train / seconds / gpu.peak_flops, "roofline", source)


def image_bytes(recipe: Recipe, path: str, gpus: int) -> float | None:
    """Return the memory traffic per training image outside matrix products. Returns None if it cannot be counted."""
    traced = image_traffic(recipe, path)
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
