"""MFU (model FLOP/s over the GPU's dense peak) of training a recipe: published, modelled, and of the paper's own runs."""

from collections.abc import Iterator
from dataclasses import dataclass

from fastft.cost.pointwise import pointwise_bytes
from fastft.cost.work import count_parameters, recipe_flops
from fastft.machine.gpus import Gpu
from fastft.model import Arch, TimmArch, TowerArch, count_frozen_blocks
from fastft.model.phases import find_phases, with_phase
from fastft.model.recipe_model import recipe_arch
from fastft.recipe import Recipe

REFERENCE_MFU = 0.143  # the paper's B/16 run on A100 (424 images/s per GPU in its log)
REFERENCE_MFU_L14 = 0.176  # its L/14 run (113 images/s per GPU)
L14_WIDTH = 1024

# Shares of the data sheet's peaks that large fp16/bf16 matrix products and streaming kernels sustain: 90 TFLOP/s and 0.79 TB/s
# on V100, 235 and 1.75 on A100, 630 and 2.9 on H100 (estimates; other GPUs assumed alike)
GEMM_SHARE = {"V100": 0.72, "A100": 0.75, "A100-40": 0.75, "H100": 0.64, "H200": 0.64}
DEFAULT_GEMM_SHARE = 0.70
MEMORY_SHARE = 0.87
# tensors of (tokens, width) that a fused kernel moves: q, k, v, o; backward also their gradients
ATTENTION_PASSES = (
    4,
    8,
)
HALF_BYTES = 2
# fp32 reads and writes per trained parameter of AdamW (gradient, weight, two moments), the inf check and the EMA
UPDATE_BYTES = 48


@dataclass(frozen=True)
class Mfu:
    """An MFU and its origin. `basis`: given, measured, published, roofline, record or reference."""

    value: float
    basis: str
    source: str


# the best figure published for training a ViT on that GPU
PUBLISHED_MFU = {
    "V100": Mfu(0.21, "published", "DeiT-B, 252 images/s per GPU (arXiv 2012.12877, section 5.6)"),
    "A100": Mfu(0.445, "published", "NeMo ViT-g/14 on a DGX A100: 693 images/s (NeMo performance page)"),
    "H100": Mfu(0.289, "published", "NeMo ViT-g/14 on a DGX H100: 1,428 images/s (NeMo performance page)"),
}
# higher figures of other transformers, as upper bounds
RECORD_MFU = {
    "V100": Mfu(0.52, "record", "DeepSpeed BERT-Large, sequence 128: 64-66 TFLOP/s (deepspeed.ai, 2020-05)")
}


def known_mfus(recipe: Recipe, gpu: Gpu, gpus: int) -> Iterator[Mfu]:
    """Published for a ViT and record, if there are any; roofline; the paper's own run. The first is the headline."""
    if gpu.name in PUBLISHED_MFU:
        yield PUBLISHED_MFU[gpu.name]
    yield roofline_mfu(recipe, gpu, gpus)
    if gpu.name in RECORD_MFU:
        yield RECORD_MFU[gpu.name]
    yield reference_mfu(recipe_arch(recipe))


def reference_mfu(arch: TowerArch) -> Mfu:
    """MFU of the paper's own run of a similar size on A100."""
    large = arch.width >= L14_WIDTH
    name, value = ("L/14", REFERENCE_MFU_L14) if large else ("B/16", REFERENCE_MFU)
    return Mfu(value, "reference", f"the paper's own {name} run on 8 A100, from its log")


def roofline_mfu(recipe: Recipe, gpu: Gpu, gpus: int) -> Mfu:
    """MFU if matrix products run at their sustained rate, all other traffic at the memory's, and neither overlaps."""
    flops = recipe_flops(recipe, recipe_arch(recipe)).train
    gemm_share = GEMM_SHARE.get(gpu.name, DEFAULT_GEMM_SHARE)
    seconds = flops / (gpu.peak_flops * gemm_share)
    seconds += image_bytes(recipe, gpu, gpus) / (gpu.bandwidth * MEMORY_SHARE)
    path = "half-precision weights" if _path(gpu) == "half" else "autocast"
    source = (
        f"modelled upper bound: {path}, matrix products at {gemm_share:.0%} of the peak, other traffic at {MEMORY_SHARE:.0%} of "
        f"{gpu.bandwidth / 1e9:,.0f} GB/s, no overlap"
    )
    return Mfu(flops / seconds / gpu.peak_flops, "roofline", source)


def image_bytes(recipe: Recipe, gpu: Gpu, gpus: int) -> float:
    """Memory traffic per training image outside matrix products, the mean of all epochs."""
    phases = find_phases(recipe)
    total = sum(phase.epochs * step_bytes(with_phase(recipe, phase), gpu, gpus) for phase in phases)
    return total / recipe.epochs


def step_bytes(recipe: Recipe, gpu: Gpu, gpus: int) -> float:
    """Traffic per image of a recipe of one phase: pointwise, attention, and the update's share."""
    arch = recipe_arch(recipe)
    if isinstance(arch, TimmArch):
        from fastft.cost.traffic import trace_model  # imports PyTorch's compiler

        traced = trace_model(recipe, _path(gpu))
        return (
            traced.bytes_per_image + UPDATE_BYTES * traced.trained_parameters * gpus / recipe.optim.batch_size
        )
    update = UPDATE_BYTES * trained_parameters(recipe, arch) * gpus / recipe.optim.batch_size
    return pointwise_bytes(recipe, _path(gpu)) + attention_bytes(recipe, arch) + update


def attention_bytes(recipe: Recipe, arch: Arch) -> float:
    """Traffic per image of fused attention kernels in all blocks; frozen blocks have no backward pass."""
    trained = arch.layers - count_frozen_blocks(arch.layers, recipe.model.trainable_layers)
    forward, backward = ATTENTION_PASSES
    tokens = 1 + (arch.tokens - 1) * (1 - recipe.largest_patch_dropout)
    return HALF_BYTES * tokens * arch.width * (forward * arch.layers + backward * trained)


def trained_parameters(recipe: Recipe, arch: Arch) -> float:
    """Parameters of tower and head outside frozen blocks."""
    frozen = count_frozen_blocks(arch.layers, recipe.model.trainable_layers)
    block = arch.width * (4 * arch.width + 2 * arch.mlp_width)
    return count_parameters(arch, recipe.data.num_classes) - frozen * block


def _path(gpu: Gpu) -> str:
    """The path that the trainer chooses: fp32 weights with a half-precision copy where there is no bf16."""
    return "autocast" if gpu.bf16 else "half"
