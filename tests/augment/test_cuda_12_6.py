"""The kernels also compile with CUDA 12.6, which pip installs beside torch's cu126 wheels (V100)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba.cuda.cudadrv.nvvm")

ROOT = Path(__file__).parents[2]
WHEEL = "nvidia-cuda-nvcc-cu12==12.6.*"


@pytest.fixture
def toolkit(tmp_path: Path) -> Path:
    """A folder with the wheel's compiler and assembler. Skips where pip cannot download it."""
    folder = tmp_path / "cuda_12_6"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{WHEEL} cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    return folder


@pytest.mark.slow
def test_the_kernels_compile_with_cuda_12_6_without_spills(toolkit):
    """The assembler of 12.6 refuses PTX of a newer compiler, so this also proves which one ran.

    numba-cuda finds ptxas and libdevice by the Python path, but libnvvm only in the installed packages, unless one is
    already loaded.
    """
    libnvvm = toolkit / "nvidia" / "cuda_nvcc" / "nvvm" / "lib64" / "libnvvm.so"
    environment = os.environ | {"LD_PRELOAD": str(libnvvm), "PYTHONPATH": os.pathsep.join([str(toolkit), str(ROOT)])}
    options = ["-m", "", "-k", "compiles", "-rs"]
    command = [sys.executable, "-m", "pytest", *options, "tests/augment/test_cuda.py"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "SKIPPED" not in done.stdout, (done.stdout + done.stderr)[-2000:]
