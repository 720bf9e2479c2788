"""The CUDA back end: compiles for every supported architecture without a GPU, and on one equals the CPU's."""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fastft.augment.erase import FLOAT16

pytest.importorskip("numba.cuda.cudadrv.nvvm")
from numba.cuda.cudadrv.error import CCSupportError

from fastft.augment import cuda as backend
from fastft.augment.cuda_compile import compile_to_ptx

V100, A100, H100 = (7, 0), (8, 0), (9, 0)


def compiled(kernel: Any, signature: tuple[Any, ...], bounds: tuple[int, int], arch: tuple[int, int]) -> str:
    """PTX; skips where Numba finds a CUDA toolkit without this architecture: 13, which PyPI's torch brings, has no V100."""
    try:
        return compile_to_ptx(kernel, signature, bounds, arch)
    except CCSupportError as error:
        pytest.skip(f"{error}; torch's cu126 wheels bring no CUDA 13")


def ptxas_path() -> str | None:
    """The assembler of the nvidia-cuda-nvcc-cu12 wheel, or of an installed toolkit."""
    wheel = importlib.util.find_spec("nvidia.cuda_nvcc")
    places = [Path(p) / "bin" for p in wheel.submodule_search_locations or []] if wheel else []
    return shutil.which("ptxas", path=str(places[0])) if places else shutil.which("ptxas")


def assert_compiles(
    kernel: Any, signature: tuple[Any, ...], bounds: tuple[int, int], arch: tuple[int, int], tmp_path: Path
) -> str:
    ptx = compiled(kernel, signature, bounds, arch)
    assert_assembles(ptx, arch, tmp_path)
    return ptx


def assert_assembles(ptx: str, arch: tuple[int, int], tmp_path: Path) -> None:
    """The assembler takes the PTX without spilling a register."""
    ptxas = ptxas_path()
    if ptxas is None:
        pytest.skip("no ptxas: pip install nvidia-cuda-nvcc-cu12")
    source = tmp_path / "kernel.ptx"
    source.write_text(ptx)
    command = [ptxas, "-v", f"-arch=sm_{arch[0]}{arch[1]}", str(source), "-o", str(tmp_path / "kernel.cubin")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    spills = re.findall(r"(\d+) bytes spill", done.stderr)
    assert spills and set(spills) == {"0"}, done.stderr


FAST, SLOW = (V100,), (A100, H100)
ARCHITECTURES = [*FAST, *(pytest.param(arch, marks=pytest.mark.slow) for arch in SLOW)]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_resize_kernel_compiles_without_spills(arch, tmp_path):
    resize = backend.resize_kernel, backend.RESIZE_SIGNATURE, backend.RESIZE_BOUNDS
    assert "fma.rn" not in assert_compiles(*resize, arch, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("arch", [*FAST, *SLOW])
def test_the_ops_kernel_compiles_without_spills(arch, tmp_path):
    ops = backend.ops_kernel, backend.ops_signature(FLOAT16), backend.OPS_BOUNDS
    ptx = assert_compiles(*ops, arch, tmp_path)
    assert "fma.rn.f32" not in ptx  # fma.rn.f64 occurs in the library's sine
    assert "ld.const" not in ptx  # threads that read different entries of constant memory wait for each other
