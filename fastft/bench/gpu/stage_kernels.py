"""Stage 1: the augmentation kernels import, link, load, and give the bytes of the CPU back end."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fastft.augment import CpuAugment, draw_plan, parse_policy, source_regions
from fastft.augment.policies import AugmentPolicy

POLICIES = ("none", "rand-m9-mstd0.5-inc1", "3aug", "augmix")
ROTATE = 4  # op number; the device's sine and cosine may end in another digit
POISON = 0xA5
PLANS = 10_000

# packed, offsets, plan -> (B, S, S, 3)
Augment = Callable[[np.ndarray, np.ndarray, np.ndarray], torch.Tensor]


def run(tiny: bool) -> dict[str, Any]:
    """Compare random plans of every policy, at odd and even batches and two sizes, with outputs poisoned beforehand.

    Raises:
        AssertionError: a pixel without rotation differs, or more than 1 in 10,000 differ.
    """
    batches, sizes, wanted = ((1, 3), (32,), 8) if tiny else ((1, 255, 256, 1024), (224, 384), PLANS)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows: list[dict[str, Any]] = []
    for policy in POLICIES:
        for size in sizes:
            for batch in batches:
                rows.append(_compare(policy, size, batch, device, seed=len(rows)))
    done = sum(row["plans"] for row in rows)
    largest = max(batches)
    while done < wanted:
        rows.append(_compare(POLICIES[1], sizes[0], largest, device, seed=len(rows)))
        done += largest
    return {"device": device.type, "plans": done, "rows": rows}


def _compare(name: str, size: int, batch: int, device: torch.device, seed: int) -> dict[str, Any]:
    policy = parse_policy(name, erase_prob=0.5)
    packed, offsets, plan = random_batch(policy, size, batch, seed)
    expected = CpuAugment(policy, size, "float16")(packed, offsets[:-1], plan).view(np.uint16)
    _poison(batch, size, device)
    images = make_augment(policy, size, device)(packed, offsets, plan)
    found = images.contiguous().view(torch.int16).cpu().numpy().view(np.uint16).reshape(expected.shape)
    differing = found != expected
    rotated = (plan["op"] == ROTATE).any(1)
    assert not differing[~rotated].any(), f"{name}, {size} px, batch {batch}: pixels without rotation differ"
    assert differing.mean() < 1e-4, (
        f"{name}, {size} px, batch {batch}: {differing.mean():.2%} of pixels differ"
    )
    return {"policy": name, "size": size, "plans": batch, "differing_pixels": int(differing.sum())}


def random_batch(
    policy: AugmentPolicy, size: int, batch: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(packed source regions uint8, offsets (B + 1) int64, plan) of smooth random images of random sizes."""
    generator = np.random.default_rng(seed)
    heights, widths = generator.integers(size // 2, 3 * size, (2, batch))
    plan = draw_plan(
        policy, seed=seed, epoch=0, sample_ids=np.arange(batch), heights=heights, widths=widths, size=size
    )
    offsets = np.cumsum([0, *(source_regions(plan, size)[:, 2:].astype(np.int64).prod(1) * 3)])
    noise = generator.integers(0, 256, offsets[-1] + 8)
    return np.convolve(noise, np.ones(9) / 9, "valid").astype(np.uint8), offsets, plan


def make_augment(policy: AugmentPolicy, size: int, device: torch.device) -> Augment:
    """The CUDA back end; on a CPU (dry run) the CPU back end behind the same interface."""
    if device.type == "cpu":
        cpu = CpuAugment(policy, size, "float16")
        return lambda packed, offsets, plan: torch.from_numpy(
            cpu(packed, offsets[:-1], plan).view(np.float16)
        )
    from fastft.augment.cuda import CudaAugment

    gpu = CudaAugment(policy, size, torch.float16, device)

    def augment(packed: np.ndarray, offsets: np.ndarray, plan: np.ndarray) -> torch.Tensor:
        tensors = (torch.from_numpy(a).to(device) for a in (packed, offsets, plan.view(np.uint8)))
        return gpu(*tensors).permute(0, 2, 3, 1)

    return augment


def _poison(batch: int, size: int, device: torch.device) -> None:
    """Fill memory that the allocator will hand out again, so that a pixel that is not written shows."""
    if device.type == "cuda":
        blocks = [
            torch.full((batch * size * size * 6,), POISON, dtype=torch.uint8, device=device) for _ in range(4)
        ]
        torch.cuda.synchronize()
        del blocks
