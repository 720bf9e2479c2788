"""`python -m fastft.augment.kernel_probe`: compile one augmentation kernel as training would.

On every visible GPU the kernel is compiled, linked and loaded; without a GPU it is compiled to PTX for sm_80. The exit code
is 0 on success. `fastft doctor` runs it in a process of its own, because a failing CUDA driver can abort the process.

It catches mismatches that version numbers do not show: numba-cuda 0.30.4 fails with NumPy 2.5, and a CUDA 12.6 linker
cannot read the PTX 8.8 of a CUDA 12.9 compiler.
"""

import torch
from numba import cuda

from fastft.augment.cuda import RESIZE_BOUNDS, RESIZE_SIGNATURE, compiled
from fastft.augment.cuda_compile import compile_to_ptx
from fastft.augment.cuda_resize import resize_kernel
from fastft.machine.facts import has_numba_cuda

PTX_TARGET = (8, 0)  # every CUDA toolkit from 11 on compiles for it


def probe() -> str:
    """Compile the resize kernel; returns what was done, in one line."""
    if not has_numba_cuda():
        raise ImportError("numba's own CUDA target is loaded; numba-cuda must be installed in site-packages")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus == 0:
        compile_to_ptx(resize_kernel, RESIZE_SIGNATURE, RESIZE_BOUNDS, PTX_TARGET)
        return "compiled to PTX for sm_{}{}".format(*PTX_TARGET)
    for index in range(gpus):
        with cuda.gpus[index]:
            compiled(resize_kernel, RESIZE_SIGNATURE, RESIZE_BOUNDS, index)
    return f"compiled, linked and loaded on {gpus} GPU(s)"


if __name__ == "__main__":
    print(probe())
