"""Runs the CUDA kernels in Numba's simulator: python -m tests.augment.simulate_cuda IN.npz OUT.npz.

A program of its own, since the simulator is chosen before numba is imported. The njit functions run as plain
Python there (NUMBA_DISABLE_JIT), because compiled ones do not take the simulator's arrays.
"""

import os
import sys
from types import SimpleNamespace

os.environ["NUMBA_ENABLE_CUDASIM"] = "1"
os.environ["NUMBA_DISABLE_JIT"] = "1"

import numpy as np
from numba import cuda

from fastft.augment.cuda_ops import ops_kernel
from fastft.augment.cuda_resize import resize_kernel
from fastft.augment.rng import HALF_NORMAL

THREADS = (24, 2)  # every one is a Python thread


def simulate(case: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(resized bytes, output), both (B, size*size*3)."""
    # a simulated record would give NumPy's method "resize" for the field of that name
    plan = [SimpleNamespace(**{name: row[name] for name in row.dtype.names}) for row in case["plan"]]
    size = int(case["size"])
    images, length = len(plan), size * size * 3
    augmix = bool(case["plan"]["chain_weights"].any())
    buffers = np.zeros((3 if augmix else 2, images, length), np.uint8)
    mixed = np.zeros((images, length) if augmix else (1, 1), np.float32)
    out = np.zeros((images, length), case["table"].dtype)
    cuda.jit(resize_kernel)[(2, images), THREADS](case["packed"], case["offsets"], plan, size, buffers[0])
    resized = buffers[0].copy()
    dtype = int(case["dtype"])
    cuda.jit(ops_kernel)[images, THREADS](
        plan, size, buffers, mixed, case["fill"], case["table"], HALF_NORMAL, dtype, out
    )
    return resized, out


if __name__ == "__main__":
    with np.load(sys.argv[1]) as case:
        resized, out = simulate(dict(case))
    np.savez(sys.argv[2], resized=resized, out=out)
