"""What a device can do at most: the denominator of MFU."""

import time
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Gpu:
    """Dense peaks, without sparsity (vendor data sheets)."""

    name: str
    peak_flops: float  # per second, of the precision used in training: fp16 on V100, bf16 on the others
    full_precision_flops: float  # fp32 without tensor cores


GPUS = {  # that costs are known for: the SXM cards of cloud machines
    "V100": Gpu("V100", 125e12, 15.7e12),
    "A100": Gpu("A100", 312e12, 19.5e12),
    "H100": Gpu("H100", 989e12, 67e12),
}
# By what torch calls the device, the particular before the general: "NVIDIA H100 PCIe" is no "H100".
CARDS = {
    "V100-PCIE": Gpu("V100 PCIe", 112e12, 14e12),
    "V100S": Gpu("V100S PCIe", 130e12, 16.4e12),
    "H100 PCIe": Gpu("H100 PCIe", 756e12, 51e12),
    "H100 NVL": Gpu("H100 NVL", 835e12, 60e12),
    "H200 NVL": Gpu("H200 NVL", 835e12, 60e12),
    "H200": Gpu("H200", 989e12, 67e12),
    **GPUS,
}

MATMUL_SIZE, MATMUL_ROUNDS = 1024, 8


def find_gpu(device_name: str) -> Gpu | None:
    """The card that torch calls so, "Tesla V100-SXM2-16GB" for one; None for a card that is not known."""
    return next((gpu for part, gpu in CARDS.items() if part in device_name), None)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """FLOP/s of a GPU by its data sheet; of the CPU, a matrix product timed here. None for an unknown GPU."""
    if device.type == "cpu":
        return measure_matmul_flops(dtype)
    gpu = find_gpu(torch.cuda.get_device_name(device))
    if gpu is None:
        return None
    return gpu.full_precision_flops if dtype == torch.float32 else gpu.peak_flops


def measure_matmul_flops(dtype: torch.dtype) -> float:
    """FLOP/s of square matrix products on the CPU, the best of a few rounds."""
    a = torch.randn(MATMUL_SIZE, MATMUL_SIZE).to(dtype)
    best = float("inf")
    for _ in range(MATMUL_ROUNDS):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * MATMUL_SIZE**3 / best
