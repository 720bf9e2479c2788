"""Augmentation on a GPU, alone. On a CPU it is part of the loader's benchmark, whose figures are per core."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from fastft.augment.cpu import CpuAugment
from fastft.augment.draw import draw_plan
from fastft.augment.policies import AugmentPolicy
from fastft.augment.resize import source_regions
from fastft.bench.child import Arm
from fastft.bench.harness import Contender, Findings, Options, alternate, measure
from fastft.bench.loaders import AUGMENT

SIZE = 224
GPU_HEIGHT, GPU_WIDTH = 375, 500  # the median ImageNet image, decoded beforehand
GPU_BATCH, GPU_REPEATS = 256, 20
GPU_POLICIES = ("none", AUGMENT, "3aug", "augmix")


def run(options: Options) -> Findings:
    """One measure per policy, milliseconds of a batch; none without a GPU."""
    if not torch.cuda.is_available():
        return
    rounds = alternate([Contender("fastft", gpu_augment, {})], options.rounds, threads=options.threads)
    for policy in GPU_POLICIES:
        setting = {"augment": policy, "batch": GPU_BATCH, "size": SIZE, "dtype": "float16"}
        yield measure(
            "Augmentation on the GPU", rounds, policy, lambda trial: 1e3 * trial["wall"] / GPU_REPEATS, "ms", setting,
            better="lower",
        )  # fmt: skip


# in the contender's process


def gpu_augment(
    device: str = "cuda", policies: Sequence[str] = GPU_POLICIES, size: int = SIZE, batch: int = GPU_BATCH
) -> dict[str, Arm]:
    """An arm per policy. device "cpu": the CPU back end on the same bytes, for tests."""
    from fastft.augment.cuda import CudaAugment

    def arm(name: str) -> Arm:
        plan = draw_plan(
            AugmentPolicy(name), seed=0, epoch=0, sample_ids=np.arange(batch), heights=np.full(batch, GPU_HEIGHT),
            widths=np.full(batch, GPU_WIDTH), size=size,
        )  # fmt: skip
        offsets = np.cumsum([0, *(source_regions(plan, size)[:, 2:].astype(np.int64).prod(1) * 3)])
        packed = torch.randint(0, 256, (int(offsets[-1]),), dtype=torch.uint8, device=device)
        if device == "cpu":
            cpu = CpuAugment(AugmentPolicy(name), size, "float16")
            return repeated(lambda: cpu(packed.numpy(), offsets[:-1], plan), batch, device)
        gpu = CudaAugment(AugmentPolicy(name), size, torch.float16, torch.device(device))
        tables = [torch.from_numpy(a).to(device) for a in (offsets, plan.view(np.uint8))]
        return repeated(lambda: gpu(packed, *tables), batch, device)

    return {name: arm(name) for name in policies}


def repeated(call: Callable[[], object], batch: int, device: str) -> Arm:
    """GPU_REPEATS calls and one wait for the device."""

    def run() -> int:
        for _ in range(GPU_REPEATS):
            call()
        if device != "cpu":
            torch.cuda.synchronize()
        return GPU_REPEATS * batch

    return run
