"""Choose how many images go through one forward pass: as many as fit, with the global batch unchanged."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from beton_tools.base.errors import UserError
from fastft.augment.policies import AugmentPolicy
from fastft.cost.gpu_memory import COPIES, HEADROOM, fast_divisor, largest_divisor, loader_bytes
from fastft.data.slots import count_slots
from fastft.machine.distributed import World
from fastft.machine.precision import Precision
from fastft.model import ImageClassifier
from fastft.optim import HalfCopy
from fastft.recipe import FinalRecipe
from fastft.run.inputs import Inputs

CPU_MICRO_BATCH = 32  # larger ones do not fit the CPU's caches and gain nothing
# Pairs of micro-batches whose peak memory is measured first. The second pair is for models that cannot fit 8 images.
PROBES = ((4, 8), (1, 2))
# The larger one is doubled until its activations take this many times the gradients' memory. With fewer images, memory
# peaks when the gradients are complete and most activations are freed. With gradient checkpointing, this is so up to some
# 100 images.
DOMINANT = 4


@dataclass(frozen=True)
class MicroBatches:
    """This process's part of a batch: `count` passes over `size` images. loader_bytes: GPU memory for the loaders."""

    size: int
    count: int
    loader_bytes: float

    def describe(self, world_size: int) -> str:
        batch = world_size * self.count * self.size
        factors = {"processes": world_size, "micro-batches": self.count}
        parts = [f"{count} {name} x " for name, count in factors.items() if count > 1]
        return f"batch {batch}" + (f" = {''.join(parts)}{self.size} images" if parts else "")


def divide_batch(
    recipe: FinalRecipe,
    model: ImageClassifier,
    world: World,
    precision: Precision,
    inputs: Inputs,
    policy: AugmentPolicy,
    unit: int,
) -> MicroBatches:
    """Divide a recipe's batch into micro-batches.

    Args:
        unit: how many images must stay together.

    Raises:
        UserError: the batch cannot be divided among the processes, or `choose_micro_batch` raises it.
    """
    batch_size, size = recipe.optim.batch_size, recipe.model.image_size
    if batch_size % world.size:
        raise UserError(
            f"optim.batch_size {batch_size} is not a multiple of {world.size} processes. Change one of the two"
        )
    loaded, batches = (
        [inputs.train, *([] if inputs.val is None else [inputs.val])],
        count_slots(recipe.data.batches_ahead),
    )
    per_image = sum(loader_bytes(f.largest.mean_pixels, size, precision.dtype, batches, policy) for f in loaded)
    rank_batch = batch_size // world.size
    chosen = choose_micro_batch(
        recipe.train.micro_batch, rank_batch, model, size, precision, unit=unit, loader_bytes=per_image
    )
    return MicroBatches(chosen, rank_batch // chosen, chosen * per_image)


def choose_micro_batch(
    requested: int,
    rank_batch: int,
    model: nn.Module,
    image_size: int,
    precision: Precision,
    *,
    unit: int = 1,
    loader_bytes: float = 0.0,
) -> int:
    """Return the recipe's micro-batch, or for 0 the largest divisor of this process's batch that fits.

    Args:
        unit: how many images must stay together: 2 if they are mixed in pairs.
        loader_bytes: GPU memory that the loaders need per image in a micro-batch.

    Raises:
        UserError: the requested micro-batch does not divide this process's batch, or not even one image fits.
    """
    if rank_batch % unit:
        raise UserError(
            f"mixup and CutMix need an even number of images per process, not {rank_batch}. Change optim.batch_size"
        )
    if requested:
        if rank_batch % requested or requested % unit:
            near = largest_divisor(rank_batch, requested, unit)
            even = " into even parts" if unit == 2 else ""
            raise UserError(
                f"train.micro_batch {requested} does not divide the {rank_batch} images per process{even}. Use {near}"
            )
        return requested
    device = next(model.parameters()).device
    if device.type == "cpu":
        return largest_divisor(rank_batch, CPU_MICRO_BATCH, unit)
    free, per_image = _measure_free(model, image_size, precision, rank_batch)
    per_image += loader_bytes
    if free < unit * per_image:
        raise UserError("the model does not fit in this GPU's memory. Try --train.grad_checkpointing=true")
    return fast_divisor(rank_batch, int(free / per_image), unit)


def _measure_free(model: nn.Module, image_size: int, precision: Precision, most: int) -> tuple[float, float]:
    """Return (bytes free for images, bytes per image), or (0, 1) if not even the smallest probes fit."""
    device = next(model.parameters()).device
    if precision.half_residual:
        model = HalfCopy(model, precision.dtype).module  # its weights count as taken while it is referenced
    for probes in PROBES:
        try:
            fixed, per_image = measure_memory(model, image_size, precision, probes, most)
        except torch.OutOfMemoryError:
            model.zero_grad(set_to_none=True)
            continue
        torch.cuda.empty_cache()  # free what the probes, and earlier runs in a sweep, have left allocated
        return HEADROOM * torch.cuda.mem_get_info(device)[0] - fixed, per_image
    return 0.0, 1.0


def measure_memory(
    model: nn.Module, image_size: int, precision: Precision, probes: tuple[int, int], most: int
) -> tuple[float, float]:
    """Measure a training step's GPU memory. Returns (bytes that do not depend on the batch, bytes per image).

    Passes over up to `most` images are measured. A first pass is not measured, because it allocates memory that stays:
    cuBLAS keeps a workspace from its first call on.
    """
    fewer, images = probes
    _peak_of_pass(model, image_size, precision, fewer)
    before, peak = (_peak_of_pass(model, image_size, precision, n) for n in probes)
    trained = sum(p.numel() * 4 for p in model.parameters() if p.requires_grad)
    while images * (peak - before) / (images - fewer) < DOMINANT * trained and 2 * images <= most:
        try:
            before, peak = peak, _peak_of_pass(model, image_size, precision, 2 * images)
            fewer, images = images, 2 * images
        except torch.OutOfMemoryError:
            model.zero_grad(set_to_none=True)
            break
    per_image = max(1.0, (peak - before) / (images - fewer))
    return COPIES * trained + max(0.0, peak - images * per_image), per_image


def _peak_of_pass(model: nn.Module, image_size: int, precision: Precision, images: int) -> int:
    """Return the peak bytes that a forward and a backward pass over this many images allocate."""
    device = next(model.parameters()).device
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    inputs = torch.zeros(images, 3, image_size, image_size, device=device, dtype=precision.dtype)
    with precision.training_context():
        logits = model(inputs.to(memory_format=torch.channels_last))
    F.cross_entropy(logits.float(), torch.zeros(images, dtype=torch.int64, device=device)).backward()
    peak = torch.cuda.max_memory_allocated(device) - before
    model.zero_grad(set_to_none=True)
    return peak
