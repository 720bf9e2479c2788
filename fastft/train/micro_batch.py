"""How many images per forward pass: as many as fit, the global batch unchanged."""

import torch
from torch import nn
from torch.nn import functional as F

from beton_tools.errors import UserError
from fastft.train.precision import Precision

CPU_MICRO_BATCH = 32  # larger ones leave the CPU's caches and gain nothing
# pairs of micro-batches whose peak memory is measured, the rest is a straight line; the second pair where the first is too large
PROBES = ((4, 8), (1, 2))
HEADROOM = 0.9  # of free memory: allocator fragments, and the loader's buffers


def choose_micro_batch(
    asked: int, rank_batch: int, model: nn.Module, image_size: int, precision: Precision, unit: int = 1
) -> int:
    """The recipe's micro-batch, or with 0 the largest divisor of this process's batch that fits.

    unit: images that must stay together: 2 where they are mixed in pairs.

    Raises:
        UserError: the asked one does not divide this process's share of the batch, or not even one image fits.
    """
    if rank_batch % unit:
        raise UserError(
            f"mixup and CutMix need an even number of images per process, not {rank_batch}; change optim.batch_size"
        )
    if asked:
        if rank_batch % asked or asked % unit:
            near = largest_divisor(rank_batch, asked, unit)
            even = " into even parts" if unit == 2 else ""
            raise UserError(
                f"train.micro_batch {asked} does not divide the {rank_batch} images per process{even}; use {near}"
            )
        return asked
    device = next(model.parameters()).device
    if device.type == "cpu":
        return largest_divisor(rank_batch, CPU_MICRO_BATCH, unit)
    room, per_image = _room(model, image_size, precision)
    if room < unit * per_image:
        raise UserError("the model does not fit in this GPU's memory; try --train.grad_checkpointing=true")
    return largest_divisor(rank_batch, int(room / per_image), unit)


def _room(model: nn.Module, image_size: int, precision: Precision) -> tuple[float, float]:
    """(bytes free for images, bytes per image); no room where not even the smallest probes run."""
    device = next(model.parameters()).device
    for probes in PROBES:
        try:
            fixed, per_image = measure_memory(model, image_size, precision, probes)
        except torch.OutOfMemoryError:
            model.zero_grad(set_to_none=True)
            continue
        torch.cuda.empty_cache()  # what the probes, or an earlier training of a sweep, had
        return HEADROOM * torch.cuda.mem_get_info(device)[0] - fixed, per_image
    return 0.0, 1.0


def largest_divisor(number: int, at_most: int, unit: int = 1) -> int:
    """The largest divisor of `number` that is a multiple of `unit` (a divisor itself) and not above `at_most`, or `unit`."""
    parts = number // unit
    return unit * max(d for d in range(1, max(1, min(number, at_most) // unit) + 1) if parts % d == 0)


def measure_memory(
    model: nn.Module, image_size: int, precision: Precision, probes: tuple[int, int]
) -> tuple[float, float]:
    """(bytes that do not depend on the batch, bytes per image) of a training step on the GPU, by two probes.

    Gradients and AdamW's moments (three fp32 copies of what is trained) count as fixed.
    """
    device = next(model.parameters()).device
    peaks = []
    for images in probes:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        inputs = torch.zeros(images, 3, image_size, image_size, device=device, dtype=precision.dtype)
        with precision.autocast():
            logits = model(inputs.to(memory_format=torch.channels_last))
        F.cross_entropy(logits.float(), torch.zeros(images, dtype=torch.int64, device=device)).backward()
        peaks.append(torch.cuda.max_memory_allocated(device) - before)
        model.zero_grad(set_to_none=True)
    per_image = max(1.0, (peaks[1] - peaks[0]) / (probes[1] - probes[0]))
    trained = sum(p.numel() * 4 for p in model.parameters() if p.requires_grad)
    return 3.0 * trained + max(0.0, peaks[0] - probes[0] * per_image), per_image
