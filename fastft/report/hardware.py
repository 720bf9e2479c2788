"""What a device can do at most: the denominator of MFU."""

import time
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Gpu:
    """Dense peak of the precision used in training, without sparsity (vendor data sheets)."""

    name: str
    peak_flops: float  # per second; fp16 on V100, bf16 on the others


GPUS = {
    "V100": Gpu("V100", 125e12),
    "A100": Gpu("A100", 312e12),
    "H100": Gpu("H100", 989e12),
}
FULL_PRECISION_FLOPS = {
    "V100": 15.7e12,
    "A100": 19.5e12,
    "H100": 67e12,
}  # fp32 without tensor cores, same sheets

MATMUL_SIZE, MATMUL_ROUNDS = 1024, 8


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """FLOP/s of a GPU by its data sheet; of the CPU, a matrix product timed here. None for an unknown GPU."""
    if device.type == "cpu":
        return measure_matmul_flops(dtype)
    name = torch.cuda.get_device_name(device)
    kind = next((k for k in GPUS if k in name), None) or ("H100" if "H200" in name else None)
    if kind is None:
        return None
    return FULL_PRECISION_FLOPS[kind] if dtype == torch.float32 else GPUS[kind].peak_flops


def measure_matmul_flops(dtype: torch.dtype) -> float:
    """FLOP/s of square matrix products on the CPU, the best of a few rounds."""
    a = torch.randn(MATMUL_SIZE, MATMUL_SIZE).to(dtype)
    best = float("inf")
    for _ in range(MATMUL_ROUNDS):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * MATMUL_SIZE**3 / best
