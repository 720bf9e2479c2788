"""Augmentation on a GPU against a copy of the bytes that it must move: the packed regions, the resized images written
and read, and the output written. Crops of images of 500 x 375, decoded beforehand; float16.
"""

from typing import Any

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


def ours() -> dict[str, Arm]:
    import torch

    from fastft.augment import parse_policy
    from fastft.augment.cuda import CudaAugment

    def arm(name: str) -> Arm:
        augment = CudaAugment(parse_policy(name), SIZE, torch.float16, torch.device("cuda"))
        plan, offsets = planned(name)
        packed = torch.randint(0, 256, (int(offsets[-1]),), dtype=torch.uint8, device="cuda")
        tables = [torch.from_numpy(a).cuda() for a in (offsets, plan.view(np.uint8))]
        return repeated(lambda: augment(packed, *tables))

    return {name: arm(name) for name in POLICIES}


def copies() -> dict[str, Arm]:
    import torch

    def arm(name: str) -> Arm:
        moved = int(planned(name)[1][-1]) + 2 * BATCH * SIZE * SIZE * 3 + 2 * BATCH * SIZE * SIZE * 3
        source = torch.empty(moved // 2, dtype=torch.uint8, device="cuda")  # a copy reads and writes
        target = torch.empty_like(source)
        return repeated(lambda: target.copy_(source))

    return {name: arm(name) for name in POLICIES}


def planned(name: str) -> tuple[np.ndarray, np.ndarray]:
    """The plan of a batch, and where each image's region begins in the packed buffer."""
    from fastft.augment import draw_plan, parse_policy, source_regions

    plan = draw_plan(
        parse_policy(name), seed=0, epoch=0, sample_ids=np.arange(BATCH), heights=np.full(BATCH, HEIGHT),
        widths=np.full(BATCH, WIDTH), size=SIZE,
    )  # fmt: skip
    return plan, np.cumsum([0, *(source_regions(plan, SIZE)[:, 2:].astype(np.int64).prod(1) * 3)])


def repeated(call: Any) -> Arm:
    """REPEATS calls and one wait for the device."""
    import torch

    def run() -> int:
        for _ in range(REPEATS):
            call()
        torch.cuda.synchronize()
        return REPEATS * BATCH

    return run
