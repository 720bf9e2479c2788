"""Claim: the augmentation kernels fit V100, A100 and H100 without spilling a register.

Setting: no GPU; numba-cuda to PTX, then `ptxas -v` of the nvidia-cuda-nvcc-cu12 wheel or an installed toolkit.
Deterministic, so n = 1. Occupancy follows from registers and shared memory alone: warps an SM can hold of the
64 it has, at 65,536 registers and, on the V100, 96 KiB of shared memory.

Run: python benchmarks/ptxas.py [--json benchmarks/results/ptxas.json]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from fastft.augment.cuda import OPS_BOUNDS, RESIZE_BOUNDS, RESIZE_SIGNATURE, ops_signature
from fastft.augment.cuda_compile import compile_to_ptx
from fastft.augment.cuda_ops import ops_kernel
from fastft.augment.cuda_resize import resize_kernel
from fastft.augment.erase import DTYPES

ARCHITECTURES = {"V100": (7, 0), "A100": (8, 0), "H100": (9, 0)}
SHARED_BYTES = {"V100": 96 << 10, "A100": 164 << 10, "H100": 228 << 10}  # of an SM, CUDA programming guide
REGISTERS, WARP, REGISTER_STEP = 65536, 32, 8
FIGURES = {
    "registers": r"Used (\d+) registers",
    "shared_bytes": r"(\d+) bytes smem",
    "stack_bytes": r"(\d+) bytes stack frame",
    "spill_store_bytes": r"(\d+) bytes spill stores",
    "spill_load_bytes": r"(\d+) bytes spill loads",
}


def find_ptxas() -> str:
    """Path of ptxas; leaves with an error where there is none."""
    wheel = importlib.util.find_spec("nvidia.cuda_nvcc")
    for place in (wheel.submodule_search_locations or []) if wheel else []:
        if found := shutil.which("ptxas", path=str(Path(place) / "bin")):
            return found
    return shutil.which("ptxas") or sys.exit("no ptxas: pip install nvidia-cuda-nvcc-cu12")


def assemble(ptx: str, arch: tuple[int, int]) -> dict[str, int]:
    """FIGURES of the kernel; the largest value where functions report apart."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        command = [find_ptxas(), "-v", f"-arch=sm_{arch[0]}{arch[1]}", str(source), "-o", f"{folder}/cubin"]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return {name: max(map(int, re.findall(pattern, report)), default=0) for name, pattern in FIGURES.items()}


def warps_per_sm(figures: dict[str, int], threads: int, gpu: str) -> int:
    """Resident warps of an SM, as far as registers and shared memory allow."""
    registers = -(-figures["registers"] // REGISTER_STEP) * REGISTER_STEP * threads
    blocks = min(
        REGISTERS // registers, SHARED_BYTES[gpu] // max(figures["shared_bytes"], 1), 2048 // threads
    )
    return blocks * threads // WARP


def measure() -> list[dict[str, Any]]:
    """A row per kernel and GPU."""
    kernels: dict[str, Any] = {"resize": (resize_kernel, RESIZE_SIGNATURE, RESIZE_BOUNDS)}
    for code, dtype in enumerate(DTYPES[:2]):  # bfloat16 is the same kernel as float16
        kernels[f"ops, {dtype}"] = (ops_kernel, ops_signature(code), OPS_BOUNDS)
    rows = []
    for name, (kernel, signature, bounds) in kernels.items():
        for gpu, arch in ARCHITECTURES.items():
            figures = assemble(compile_to_ptx(kernel, signature, bounds, arch), arch)
            warps = warps_per_sm(figures, bounds[0], gpu)
            rows.append({"kernel": name, "gpu": gpu, "threads": bounds[0], **figures, "warps_per_sm": warps})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    arguments = parser.parse_args()
    rows = measure()
    columns = list(rows[0])
    print("  ".join(f"{column:>17}" for column in columns))
    for row in rows:
        print("  ".join(f"{row[column]!s:>17}" for column in columns))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
