"""Compile the kernels: with the same arithmetic as on the CPU, or to PTX if there is no GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numba
import numba.cuda.dispatcher
from numba import cuda
from numba.cuda.cudadrv import nvvm
from numba.np.numpy_support import from_dtype

from fastft.augment.plan import PLAN_DTYPE

numba.config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # a small batch is not a mistake
PLAN_ARRAY = from_dtype(PLAN_DTYPE)[::1]


@contextmanager
def no_fma() -> Iterator[None]:
    """Compile kernels in this context without fused multiply-add, so that every operation rounds as on the CPU.

    NVVM fuses by default, and numba-cuda has no option that forbids it.
    """
    compile_ir = nvvm.compile_ir

    def exact(modules: Any, **options: Any) -> Any:
        return compile_ir(modules, **options, fma=False)

    with mock.patch.object(nvvm, "compile_ir", exact):
        yield


def compile_to_ptx(
    kernel: Callable[..., None],
    signature: tuple[Any, ...],
    launch_bounds: tuple[int, int],
    compute_capability: tuple[int, int],
) -> str:
    """Return the PTX of a kernel (the undecorated function) for an architecture such as (7, 0). Needs no GPU.

    Numba asks the current device for its capability when a kernel calls an njit function, so a stub answers instead.
    """
    device = SimpleNamespace(compute_capability=compute_capability)
    with no_fma(), mock.patch.object(numba.cuda.dispatcher, "get_current_device", lambda: device):
        ptx, _ = cuda.compile_ptx(kernel, signature, cc=compute_capability, launch_bounds=launch_bounds)
    return str(ptx)
