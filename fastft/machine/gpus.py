"""GPU peaks from data sheets, and a device's peak FLOP/s, which is the denominator in MFU."""

import re
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch


@dataclass(frozen=True)
class Gpu:
    """One card. Peaks are dense (without sparsity), with fp32 accumulation, from `source`."""

    name: str
    peak_flops: float  # per second, on tensor cores in the training precision (bf16, or fp16 before Ampere)
    full_precision_flops: float  # per second, fp32 without tensor cores
    bandwidth: float  # device memory bandwidth, bytes/s
    memory: float  # bytes (the smaller size if a card is sold with two)
    pattern: str  # regular expression that matches torch.cuda.get_device_name()
    source: str
    bf16: bool = True  # native support
    # large fp16/bf16 products sustain this fraction of peak_flops: 90 TFLOP/s on V100, 235 on A100, 630 on H100 (estimates)
    gemm_share: float = 0.70
    cores: float = 4.0  # physical cores (two vCPU each) per GPU in a usual cloud machine. 4 are assumed


def _gpu(
    name: str, tflops: float, fp32: float, gb_per_s: float, gb: float, pattern: str, source: str, **rest: Any
) -> Gpu:
    return Gpu(name, tflops * 1e12, fp32 * 1e12, gb_per_s * 1e9, gb * 1e9, pattern, f"NVIDIA {source}", **rest)


# cores: from p3.16xlarge, p4d.24xlarge, p5.48xlarge, p5en.48xlarge and p6-b200.48xlarge
_CARDS = (
    _gpu("V100", 125, 15.7, 900, 16, r"V100-SXM", "V100 data sheet (SXM2)", bf16=False, gemm_share=0.72),
    _gpu("V100-PCIe", 112, 14, 900, 16, r"V100-PCIE", "V100 data sheet (PCIe)", bf16=False),
    _gpu("V100S", 130, 16.4, 1134, 32, r"V100S", "V100 data sheet (V100S PCIe)", bf16=False),
    _gpu("T4", 65, 8.1, 300, 16, r"\bT4\b", "T4 data sheet", bf16=False),
    # no tensor cores, and half-precision products with fp32 sums run at the fp32 rate
    _gpu("P100", 9.3, 9.3, 732, 16, r"P100-PCIE", "P100 data sheet (PCIe)", bf16=False),
    _gpu(
        "A100",
        312,
        19.5,
        2039,
        80,
        r"A100.*80GB|A100-SXM-80GB",
        "A100 data sheet (80 GB SXM)",
        gemm_share=0.75,
        cores=6,
    ),
    _gpu("A100-40", 312, 19.5, 1555, 40, r"A100", "A100 data sheet (40 GB)", gemm_share=0.75),
    _gpu("A10", 125, 31.2, 600, 24, r"\bA10\b", "A10 data sheet"),
    _gpu("H100", 989, 67, 3350, 80, r"H100 (80GB )?HBM3|H100-SXM", "H100 data sheet (SXM)", gemm_share=0.64, cores=12),
    _gpu("H100-PCIe", 756, 51, 2000, 80, r"H100 PCIe", "H100 data sheet (PCIe)"),
    _gpu("H100-NVL", 835, 60, 3900, 94, r"H100 NVL", "H100 data sheet (NVL)"),
    _gpu("H200-NVL", 835, 60, 4800, 141, r"H200 NVL", "H200 data sheet (NVL)"),
    _gpu("H200", 989, 67, 4800, 141, r"H200", "H200 data sheet (SXM)", gemm_share=0.64, cores=12),
    _gpu("B200", 2250, 75, 8000, 180, r"\bB200\b", "HGX B200 data sheet, one of eight", cores=12),
    _gpu("L4", 121, 30.3, 300, 24, r"\bL4\b", "L4 data sheet"),
    _gpu("L40S", 362, 91.6, 864, 48, r"\bL40S\b", "L40S data sheet"),
    _gpu("RTX3090", 71, 35.6, 936, 24, r"RTX 3090$", "GA102 white paper, appendix A"),
    _gpu("RTX4090", 165.2, 82.6, 1008, 24, r"RTX 4090$", "Ada white paper, appendix A"),
    _gpu("RTX5090", 209.5, 104.8, 1792, 32, r"RTX 5090$", "RTX Blackwell white paper, appendix A"),
)
GPUS = {gpu.name: gpu for gpu in _CARDS}  # by name. `find_gpu` searches in this order
MAIN_GPUS = ("V100", "A100", "H100")  # columns in tables that show a few GPUs

# Each size is measured for at least this many rounds and seconds. Sizes whose rounds exceed the limit are left out.
MATMUL_SIZES, MATMUL_ROUNDS, MATMUL_SECONDS, MATMUL_LIMIT = (384, 768, 1536), 3, 0.1, 1.0


def find_gpu(device_name: str) -> Gpu | None:
    """Return the card with this `torch.cuda.get_device_name()`, such as "Tesla V100-SXM2-16GB". None if not in GPUS."""
    return next((gpu for gpu in _CARDS if re.search(gpu.pattern, device_name)), None)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Return a GPU's peak FLOP/s from its data sheet, or a CPU's from a matrix product timed here.

    A CPU is timed once in a process for each dtype and number of threads. Returns None for an unknown GPU.
    """
    if device.type == "cpu":
        return _cpu_flops(dtype, torch.get_num_threads())
    return data_sheet_flops(device, dtype)


def data_sheet_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Return a GPU's peak FLOP/s from its data sheet, which is the denominator in MFU.

    Returns None for an unknown GPU, and for a CPU. A CPU has no MFU, because a timed matrix product is no upper limit.
    """
    gpu = find_gpu(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if gpu is None:
        return None
    return gpu.full_precision_flops if dtype == torch.float32 else gpu.peak_flops


@lru_cache
def _cpu_flops(dtype: torch.dtype, threads: int) -> float:
    return measure_matmul_flops(dtype)


def measure_matmul_flops(dtype: torch.dtype) -> float:
    """Measure FLOP/s for square matrix products on the CPU: the best round over several sizes.

    Small products end within one of the scheduler's time slices. On a busy machine the larger ones are interrupted in
    every round, and the MFU would exceed 100 %. On 2 cores with 12 processes, products with size 1,024 reached 11
    GFLOP/s, and products with size 320 x 384 x 1,152 reached 89. Where bf16 is emulated, the largest product would take
    seconds.
    """
    best = 0.0
    for size in MATMUL_SIZES:
        if best and MATMUL_ROUNDS * 2 * size**3 / best > MATMUL_LIMIT:
            break
        a, rounds, began = torch.randn(size, size).to(dtype), 0, time.perf_counter()
        while rounds < MATMUL_ROUNDS or time.perf_counter() - began < MATMUL_SECONDS:
            start, rounds = time.perf_counter(), rounds + 1
            a @ a
            best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best
