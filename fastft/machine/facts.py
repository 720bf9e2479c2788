"""What `fastft doctor` knows about a machine. Gathering never fails: what cannot be found out is None."""

import ctypes.util
import importlib.metadata
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from beton_tools.format import Beton
from fastft.machine.cgroup import cpu_limit, memory_limit

GIB = 1 << 30
COMMAND_SECONDS = 20  # nvidia-smi on a machine whose driver hangs
IMPORT_SECONDS = 120  # FFCV, with torch, from a slow disk


@dataclass(frozen=True)
class GpuFacts:
    name: str
    capability: tuple[int, int]


@dataclass(frozen=True)
class Facts:
    """Sizes in bytes."""

    python: tuple[int, ...]
    executable: str  # of this Python, as a shell here is told
    torch: str | None
    torch_cuda: str | None  # CUDA that torch was built with; None: CPU build
    arch_list: tuple[str, ...]  # sm_70, ..., compute_90
    gpus: tuple[GpuFacts, ...]
    nvidia_smi: str | None  # first card by nvidia-smi, which needs no torch
    numba_cuda: str | None
    numba_cuda_toolkit: int | None  # major version of the CUDA wheels beside it
    ffcv: str | None
    ffcv_error: str | None
    ffcv_missing_libraries: tuple[str, ...]
    turbojpeg: str | None
    cores: int
    ram_total: int
    ram_available: int
    data_size: int | None
    disk_free: int
    shm_size: int | None


def gather(data: Path | None = None) -> Facts:
    """Look at this machine; `data` is the file that training will read.

    Raises:
        UserError: `data` is not there, or is no .beton.
    """
    data_size = None if data is None else Beton.open(data).data.nbytes
    torch_version, torch_cuda, arch_list, gpus = _torch()
    total, available = _memory()
    shm = Path("/dev/shm")
    return Facts(
        python=tuple(sys.version_info[:3]),
        executable=_executable(),
        torch=torch_version,
        torch_cuda=torch_cuda,
        arch_list=arch_list,
        gpus=gpus,
        nvidia_smi=_first_line("nvidia-smi", "--query-gpu=name", "--format=csv,noheader"),
        numba_cuda=_version("numba-cuda"),
        numba_cuda_toolkit=_cuda_wheels(),
        ffcv=_version("ffcv"),
        ffcv_error=_import_error("ffcv"),
        ffcv_missing_libraries=_missing_libraries("ffcv"),
        turbojpeg=ctypes.util.find_library("turbojpeg"),
        cores=_cores(),
        ram_total=total,
        ram_available=available,
        data_size=data_size,
        disk_free=shutil.disk_usage(Path.cwd()).free,
        shm_size=shutil.disk_usage(shm).total if shm.is_dir() else None,
    )


def _torch() -> tuple[str | None, str | None, tuple[str, ...], tuple[GpuFacts, ...]]:
    try:
        import torch
    except Exception:  # a broken install fails in many ways; each means: not usable
        return None, None, (), ()
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = tuple(
        GpuFacts(torch.cuda.get_device_name(k), torch.cuda.get_device_capability(k)) for k in range(count)
    )
    return torch.__version__, torch.version.cuda, tuple(torch.cuda.get_arch_list()), gpus


def _memory() -> tuple[int, int]:
    """Total and available, of the control group where that is smaller than the machine."""
    values = {}
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        key, _, rest = line.partition(":")
        values[key] = int(rest.split()[0]) * 1024
    total, available = values["MemTotal"], values["MemAvailable"]
    limit = memory_limit()
    return (total, available) if limit is None else (min(total, limit), min(available, limit))


def _cores() -> int:
    """That this process may run on, and has CPU time for: whole ones, at least one."""
    allowed, limit = len(os.sched_getaffinity(0)), cpu_limit()
    return allowed if limit is None else max(1, min(allowed, int(limit)))


def _executable() -> str:
    """Short where it lies below the working directory, as .venv/bin/python."""
    path, here = Path(sys.executable), Path.cwd()
    inside = path.is_relative_to(here) and path.parent != here  # a bare name would be looked for in PATH
    return shlex.quote(str(path.relative_to(here) if inside else path))


def _first_line(*command: str) -> str | None:
    return next(iter(_output(*command).splitlines()), None)


def _output(*command: str) -> str:
    """What a command prints; nothing where it is missing, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cuda_wheels() -> int | None:
    """12 or 13, by the runtime wheel that numba-cuda's extra brings."""
    if _version("nvidia-cuda-runtime-cu12") is not None:
        return 12
    runtime = _version("nvidia-cuda-runtime")  # without a suffix since CUDA 13
    return None if runtime is None else int(runtime.split(".")[0])


def _import_error(module: str) -> str | None:
    """In a process of its own: a C++ library at odds with another one may end the process."""
    command = [sys.executable, "-c", f"import {module}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=IMPORT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"import {module} has not ended after {IMPORT_SECONDS} s"
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"import {module} ended with exit code {done.returncode}"


def _missing_libraries(package: str) -> tuple[str, ...]:
    """Shared libraries that a package's compiled modules ask for and the loader does not find, by ldd."""
    try:
        files = importlib.metadata.files(package) or []
        compiled = [str(f.locate()) for f in files if f.suffix == ".so"]
        listings = [_output("ldd", path) for path in compiled]
    except importlib.metadata.PackageNotFoundError:
        return ()
    lines = [line for text in listings for line in text.splitlines()]
    return tuple(sorted({line.split()[0] for line in lines if "not found" in line}))


def cpu_name() -> str:
    """The processor's model name from /proc/cpuinfo; 'CPU' where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "CPU"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
