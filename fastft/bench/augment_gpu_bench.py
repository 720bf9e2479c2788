"""Augmentation on a GPU against a copy of the bytes that it must move: the packed regions, the resized images written
and read, and the output written. Crops of images of 500 x 375, decoded beforehand; float16.
"""

from collections.abc import Callable, Sequence

import numpy as np

from fastft.bench.child import Arm
from fastft.bench.harness import Contender, Trial, alternate, measure
from fastft.bench.options import Findings, Options

HEIGHT, WIDTH = 375, 500  # the median ImageNet image
SIZE, BATCH, REPEATS = 224, 256, 20
POLICIES = ("none", "rand-m9-mstd0.5-inc1", "3aug", "augmix")


def measures(options: Options) -> Findings:
    """One measure per policy; milliseconds of a batch."""
    contenders = [
        Contender("fastft", ours, {}),
        Contender("copy of its bytes", copies, {}),
    ]
    rounds = alternate(contenders, options.rounds, threads=options.threads)
    setting = {"batch": BATCH, "size": SIZE, "dtype": "float16"}
    for policy in POLICIES:
        given = {"augment": policy, **setting}
        yield measure("Augmentation on the GPU", rounds, policy, _milliseconds, "ms", given, better="lower")


def _milliseconds(trial: Trial) -> float:
    return 1e3 * trial["wall"] / REPEATS


def ours(
    device: str = "cuda", policies: Sequence[str] = POLICIES, size: int = SIZE, batch: int = BATCH
) -> dict[str, Arm]:
    """An arm per policy. device "cpu": the CPU back end on the same bytes, for tests."""
    import torch

    from fastft.augment import CpuAugment, parse_policy
    from fastft.augment.cuda import CudaAugment

    def arm(name: str) -> Arm:
        plan, offsets = planned(name, size, batch)
        packed = torch.randint(0, 256, (int(offsets[-1]),), dtype=torch.uint8, device=device)
        if device == "cpu":
            cpu = CpuAugment(parse_policy(name), size, "float16")
            return repeated(lambda: cpu(packed.numpy(), offsets[:-1], plan), batch, device)
        gpu = CudaAugment(parse_policy(name), size, torch.float16, torch.device(device))
        tables = [torch.from_numpy(a).to(device) for a in (offsets, plan.view(np.uint8))]
        return repeated(lambda: gpu(packed, *tables), batch, device)

    return {name: arm(name) for name in policies}


def copies(
    device: str = "cuda", policies: Sequence[str] = POLICIES, size: int = SIZE, batch: int = BATCH
) -> dict[str, Arm]:
    """An arm per policy that copies as many bytes as the kernels must move."""
    import torch

    def arm(name: str) -> Arm:
        moved = int(planned(name, size, batch)[1][-1]) + 4 * batch * size * size * 3
        source = torch.empty(moved // 2, dtype=torch.uint8, device=device)  # a copy reads and writes
        target = torch.empty_like(source)
        return repeated(lambda: target.copy_(source), batch, device)

    return {name: arm(name) for name in policies}


def planned(name: str, size: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """The plan of a batch, and where each image's region begins in the packed buffer."""
    from fastft.augment import draw_plan, parse_policy, source_regions

    plan = draw_plan(
        parse_policy(name), seed=0, epoch=0, sample_ids=np.arange(batch), heights=np.full(batch, HEIGHT),
        widths=np.full(batch, WIDTH), size=size,
    )  # fmt: skip
    return plan, np.cumsum([0, *(source_regions(plan, size)[:, 2:].astype(np.int64).prod(1) * 3)])


def repeated(call: Callable[[], object], batch: int, device: str) -> Arm:
    """REPEATS calls and one wait for the device."""
    import torch

    def run() -> int:
        for _ in range(REPEATS):
            call()
        if device != "cpu":
            torch.cuda.synchronize()
        return REPEATS * batch

    return run
