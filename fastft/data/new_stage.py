"""The stage for a device, and whether the device can make images of a size."""

from importlib.util import find_spec

import torch

from beton_tools.base.errors import UserError
from beton_tools.read.beton_set import BetonSet
from fastft.augment.policies import AugmentPolicy
from fastft.data.batch import Output
from fastft.data.packed_stage import PackedStage
from fastft.data.stage import CpuStage, Stage


def new_stage(
    betons: BetonSet, policy: AugmentPolicy, output: Output, *, workers: int, slots: int, batch: int
) -> Stage:
    """The stage that makes `output` of the samples.

    Raises:
        UserError: a GPU without numba-cuda, or as `check_shrink`.
    """
    size, device = output.size, torch.device(output.device)
    if device.type == "cpu":
        return CpuStage(betons, policy, size, output.dtype, workers=workers, slots=slots, batch=batch)
    if find_spec("numba_cuda") is None:
        raise UserError("augmentation on a GPU needs numba-cuda: pip install 'fastft[cuda12]'")
    from fastft.augment.cuda import CudaAugment

    check_shrink(betons, device, size)
    augment = CudaAugment(policy, size, output.dtype, device)
    return PackedStage(betons, size, device, augment, workers=workers, slots=slots)


def check_shrink(betons: BetonSet, device: torch.device | str, size: int) -> None:
    """Raise UserError if the device cannot make images of this size from the largest image."""
    if torch.device(device).type == "cpu":
        return
    from fastft.augment.cuda_resize import MOST_SHRINK

    longest = max(betons.largest.height, betons.largest.width)
    if longest > MOST_SHRINK * size:
        raise UserError(
            f"{betons.title}: the GPU cannot shrink a side of {longest} pixels to {size}; convert with "
            f"--max-resolution {MOST_SHRINK * size} or less"
        )
