"""The augmentation kernels on a card: the bytes of the CPU back end, and nothing for compute-sanitizer to report."""

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch

from fastft.augment.cpu import CpuAugment
from fastft.augment.draw import draw_plan
from fastft.augment.plan import OP_ID
from fastft.augment.policies import AugmentPolicy
from fastft.augment.resize import source_regions

POLICIES = ("none", "rand-m9-mstd0.5-inc1", "rand-m9-n3-p0.8-mstd0.5-inc1", "3aug", "augmix")
NOISE_BYTES = 1 << 20
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
SANITIZER_SECONDS = 130  # all four within ten minutes

# packed, offsets, plan -> (B, S, S, 3)
Augment = Callable[[np.ndarray, np.ndarray, np.ndarray], torch.Tensor]


def random_batch(policy: AugmentPolicy, size: int, batch: int, seed: int) -> tuple[np.ndarray, ...]:
    """(packed source regions uint8, offsets (B + 1) int64, plan) of smooth noise, images of random sizes."""
    generator = np.random.default_rng(seed)
    heights, widths = generator.integers(size // 2, 3 * size, (2, batch))
    plan = draw_plan(policy, seed=seed, epoch=0, sample_ids=np.arange(batch), heights=heights, widths=widths, size=size)
    offsets = np.cumsum([0, *(source_regions(plan, size)[:, 2:].astype(np.int64).prod(1) * 3)])
    noise = generator.integers(0, 256, NOISE_BYTES + 8)
    smooth = np.convolve(noise, np.ones(9) / 9, "valid").astype(np.uint8)
    return np.resize(smooth, offsets[-1]), offsets, plan


def new_augment(policy: AugmentPolicy, size: int, dtype: torch.dtype, device: torch.device) -> Augment:
    """The CUDA back end; on a CPU, the CPU back end with the same arguments."""
    if device.type == "cpu":
        cpu = CpuAugment(policy, size, str(dtype).removeprefix("torch."))
        return lambda packed, offsets, plan: torch.from_numpy(cpu(packed, offsets[:-1], plan)).view(dtype)
    from fastft.augment.cuda import CudaAugment

    gpu = CudaAugment(policy, size, dtype, device)

    def augment(packed: np.ndarray, offsets: np.ndarray, plan: np.ndarray) -> torch.Tensor:
        tensors = (torch.from_numpy(a).to(device) for a in (packed, offsets, plan.view(np.uint8)))
        return gpu(*tensors).permute(0, 2, 3, 1)

    return augment


def poison(num_bytes: int, device: torch.device) -> None:
    """Fill memory that the allocator will hand out again, so that a pixel that is not written differs."""
    if device.type == "cuda":
        blocks = [torch.full((num_bytes,), 0xA5, dtype=torch.uint8, device=device) for _ in range(4)]
        torch.cuda.synchronize()
        del blocks


@pytest.mark.parametrize("name", POLICIES)
def test_random_plans_give_the_bytes_of_the_cpu(name, device):
    """Rotations apart, whose sine and cosine may end in another digit: there in fewer than 1 of 10,000 values."""
    policy = AugmentPolicy(name, erase_prob=0.5, erase_count=2)
    cases = (torch.float16,), (32,), (1, 3)
    if device.type == "cuda":
        cases = (torch.float32, torch.float16, torch.bfloat16), (224, 384), (1, 255, 256)
    for seed, (dtype, size, batch) in enumerate(itertools.product(*cases)):
        packed, offsets, plan = random_batch(policy, size, batch, seed)
        expected = CpuAugment(policy, size, str(dtype).removeprefix("torch."))(packed, offsets[:-1], plan)
        poison(batch * size * size * 3 * dtype.itemsize, device)
        images = new_augment(policy, size, dtype, device)(packed, offsets, plan)
        differing = (images.cpu() != torch.from_numpy(expected).view(dtype)).numpy()
        rotated = (plan["op"] == OP_ID["Rotate"]).any(1)
        assert not differing[~rotated].any(), f"{dtype}, {size} px, batch {batch}"
        assert differing.mean() < 1e-4, f"{dtype}, {size} px, batch {batch}"


def augment_once(device: torch.device) -> None:
    """One batch per policy, waited for."""
    for seed, name in enumerate(POLICIES):
        policy = AugmentPolicy(name, erase_prob=0.5)
        images = new_augment(policy, 64, torch.float16, device)(*random_batch(policy, 64, 8, seed))
        assert torch.isfinite(images.cpu()).all()


def test_what_compute_sanitizer_runs(device):
    augment_once(device)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
@pytest.mark.parametrize("tool", TOOLS)
def test_compute_sanitizer_reports_nothing(tool):
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/cuda/bin"])
    sanitizer = shutil.which("compute-sanitizer", path=path)
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not installed; it is part of the CUDA toolkit")
    done = subprocess.run(
        [sanitizer, "--tool", tool, "--error-exitcode", "86", sys.executable, "-m", "tests.gpu.test_kernels"],
        env=os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},  # so that every tensor has its own bounds
        capture_output=True, text=True, timeout=SANITIZER_SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, "\n".join((done.stdout + done.stderr).splitlines()[-20:])


if __name__ == "__main__":
    augment_once(torch.device("cuda"))
