"""Facts about this machine: memory, processor, and for `fastft doctor` everything that may be missing.

Gathering them never fails. An unknown value is None.
"""

import importlib.metadata
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psutil

from beton_tools.base.cgroup import memory_limit, usable_cpus
from fastft.machine.usable_gpu import TorchFacts, gather_torch

GIB = 1 << 30
RAM_SHARE = 0.9  # files up to this share of the available memory stay in the page cache
KERNEL_PROBE, PIXEL_PROBE = "fastft.augment.kernel_probe", "fastft.data.pixel_probe"
# time limit for a probe. Importing torch from a slow disk takes long, and so does compiling the loader
PYTHON_SECONDS = 300
UNFINISHED = "did not finish within"  # begins the error if a probe exceeds the limit


@dataclass(frozen=True)
class Facts(TorchFacts):
    """Sizes in bytes."""

    python: tuple[int, ...]
    numba_cuda: str | None
    numba_cuda_toolkit: int | None  # the installed CUDA wheels' major version
    kernel: str | None  # what kernel_probe did. None if it failed or was not run
    kernel_error: str | None
    pixels: str | None  # what pixel_probe found. None if it failed or was not run
    pixels_error: str | None
    ffcv: str | None
    ffcv_error: str | None
    turbojpeg: str | None
    cores: int
    ram_total: int
    ram_available: int
    data_size: int | None
    disk_free: int
    shm_size: int | None


def gather(data: Path | None = None) -> Facts:
    """Examine this machine. `data` is the training file, or a pattern for several.

    Raises UserError if `data` does not exist or is not a .beton file.
    """
    data_size = None
    if data is not None:
        from beton_tools.read.beton_set import BetonSet  # imported here because it loads the image libraries

        data_size = BetonSet.open(data, classes_by_position=True).file_size
    total, available = memory_bytes()
    numba_cuda = package_version("numba-cuda")
    kernel, kernel_error = (None, None) if numba_cuda is None else _run_python("-m", KERNEL_PROBE)
    ffcv = package_version("ffcv")
    ffcv_error = None if ffcv is None else _run_python("-c", "import ffcv")[1]
    turbojpeg = _run_python("-c", "from beton_tools.jpeg.turbo import open_library; print(open_library()._name)")[0]
    pixels, pixels_error = _run_python("-m", PIXEL_PROBE) if turbojpeg is not None else (None, None)
    shm = Path("/dev/shm")
    return Facts(
        **vars(gather_torch()),
        python=tuple(sys.version_info[:3]),
        numba_cuda=numba_cuda,
        numba_cuda_toolkit=_cuda_wheels(),
        kernel=kernel,
        kernel_error=kernel_error,
        pixels=pixels,
        pixels_error=pixels_error,
        ffcv=ffcv,
        ffcv_error=ffcv_error,
        turbojpeg=turbojpeg,
        cores=usable_cpus(),
        ram_total=total,
        ram_available=available,
        data_size=data_size,
        disk_free=shutil.disk_usage(Path.cwd()).free,
        shm_size=shutil.disk_usage(shm).total if shm.is_dir() else None,
    )


def package_version(package: str) -> str | None:
    """Return the installed version, or None if the package is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def has_numba_cuda() -> bool:
    """Return True if `numba.cuda` is numba-cuda.

    A .pth file puts it there, and Python reads such files in site-packages but not on PYTHONPATH.
    """
    spec = find_spec("numba.cuda")
    return spec is not None and "numba_cuda" in str(spec.origin)


def _cuda_wheels() -> int | None:
    """Return 12 or 13, the major version of the CUDA runtime wheel that numba-cuda's extra installs."""
    if package_version("nvidia-cuda-runtime-cu12") is not None:
        return 12
    runtime = package_version("nvidia-cuda-runtime")  # CUDA 13 dropped the suffix
    return None if runtime is None else int(runtime.split(".")[0])


def _run_python(*arguments: str) -> tuple[str | None, str | None]:
    """Run this Python in a process of its own, which an incompatible C++ library may abort.

    Returns output or error. The other is None.
    """
    command = [sys.executable, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PYTHON_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return None, f"{shlex.join(arguments)} {UNFINISHED} {PYTHON_SECONDS} s"
    if done.returncode == 0:
        return done.stdout.strip(), None
    lines = done.stderr.strip().splitlines()
    return None, lines[-1] if lines else f"{shlex.join(arguments)} ended with exit code {done.returncode}"


def cpu_name() -> str:
    """Return the processor's model name from /proc/cpuinfo, or 'CPU' if there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "CPU"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")


def memory_bytes() -> tuple[int, int]:
    """Return total and available bytes, for the machine or for the control group if that has less."""
    memory, limit = psutil.virtual_memory(), memory_limit()
    total, available = memory.total, memory.available
    return (total, available) if limit is None else (min(total, limit), min(available, limit))


def fits_page_cache(num_bytes: int, available: int) -> bool:
    return num_bytes <= RAM_SHARE * available
