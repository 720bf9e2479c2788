"""`python -m fastft.augment.kernel_probe`: compile one augmentation kernel as training would.

On every visible GPU, the kernel is compiled, linked and loaded. Without a GPU, it is compiled to PTX for sm_80. The
exit code is 0 on success. `fastft doctor` runs it in a separate process, because a failing CUDA driver can abort the
process.

It catches mismatches that version numbers do not show: numba-cuda 0.30.4 fails with NumPy 2.5, and a CUDA 12.6 linker
cannot read the PTX 8.8 that a CUDA 12.9 compiler writes.
"""

import torch
from numba import cuda
from numba.cuda.cudadrv.driver import driver

from beton_tools.base.errors import first_line
from fastft.augment.cuda import RESIZE_BOUNDS, RESIZE_SIGNATURE, compiled
from fastft.augment.cuda_compile import compile_to_ptx
from fastft.augment.cuda_resize import resize_kernel
from fastft.machine.facts import has_numba_cuda

DRIVER = "the driver's linker"
PTX_TARGET = (8, 0)  # every CUDA toolkit from 11 on compiles for it


def probe() -> str:
    """Compile the resize kernel. Returns one line that says what was done."""
    if not has_numba_cuda():
        raise ImportError("numba's own CUDA target is loaded. Install numba-cuda in site-packages")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus == 0:
        ptx = compile_to_ptx(resize_kernel, RESIZE_SIGNATURE, RESIZE_BOUNDS, PTX_TARGET)
        return "compiled to PTX {} for sm_{}{}".format(ptx.split(".version ", 1)[1].split()[0], *PTX_TARGET)
    try:
        for index in range(gpus):
            with cuda.gpus[index]:
                compiled(resize_kernel, RESIZE_SIGNATURE, RESIZE_BOUNDS, index)
    except Exception as error:  # raised by NVVM, by a linker or by the driver
        raise RuntimeError(f"{first_line(error)} (linker: {linker()})") from error
    return f"compiled, linked by {linker()} and loaded on {gpus} GPU(s)"


def linker() -> str:
    """Return what makes machine code from PTX, with its CUDA version. It cannot read PTX from a newer version.

    numba-cuda takes nvJitLink from its wheel, whose version is the compiler's. Without that wheel, the driver links,
    and a CUDA 13.0 driver cannot read the PTX 9.2 that CUDA 13.2's NVVM writes.
    """
    try:
        from cuda.bindings import nvjitlink

        return "nvJitLink {}.{}".format(*nvjitlink.version())
    except Exception:  # no wheel, or a library that cannot be loaded
        return "{} {}.{}".format(DRIVER, *driver.get_version())


if __name__ == "__main__":
    print(probe())
