"""Whether torch can use this machine's GPUs: `fastft doctor` shows it, and commands ask before they start to work.

Without this question a run would end in torch's traceback, or train on the CPU of a machine that has GPUs.
"""

import os
import shlex
import subprocess
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

from beton_tools.base.errors import UserError

TORCH_WITHOUT_VOLTA = "2.15"  # plans to drop the cu126 wheels, and Volta with them (PyTorch RFC 190385)
VOLTA = (7, 0)
CU126 = "--index-url https://download.pytorch.org/whl/cu126"
# oldest driver for each major CUDA version: "CUDA Toolkit and Minimum Required Driver Version for CUDA Minor Version
# Compatibility" in NVIDIA's release notes
DRIVERS = {"12": 525, "13": 580}
COMMAND_SECONDS = 20  # a time limit, because nvidia-smi hangs with some broken drivers
PROC, DEVICES = Path("/proc/driver/nvidia"), Path("/dev")
WITHOUT_GPU = ("", "-1", "NoDevFiles")  # CUDA_VISIBLE_DEVICES that hides all GPUs. Slurm sets the last

Problem = tuple[str, str]  # what was found, and a command or an instruction that fixes it


@dataclass(frozen=True)
class GpuFacts:
    name: str
    capability: tuple[int, int]
    memory: int  # bytes


@dataclass(frozen=True)
class TorchFacts:
    """What torch and NVIDIA's driver say about this machine's GPUs. An unknown value is None."""

    executable: str  # this Python's path, quoted for a shell in the working directory
    torch: str | None
    torch_cuda: str | None  # CUDA version that torch was built with. None for a CPU build
    torch_error: str | None  # why torch sees no GPU
    arch_list: tuple[str, ...]  # sm_70, ..., compute_90
    gpus: tuple[GpuFacts, ...]  # that torch sees
    # The driver is asked only if torch sees no GPU. Also None if CUDA_VISIBLE_DEVICES hides all GPUs.
    driver_gpu: str | None  # the first GPU's name
    driver: str | None  # version
    device_files: bool  # /dev/nvidia0 and the like, which a container lacks unless it was started with GPUs


def gather_torch() -> TorchFacts:
    """Ask torch and the driver. This never fails."""
    version, cuda, error, arch_list, gpus = _torch()
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in WITHOUT_GPU
    name, driver = (None, None) if gpus or hidden else _driver()
    files = any(DEVICES.glob("nvidia[0-9]*")) or (DEVICES / "dxg").exists()  # dxg: Windows' GPUs under WSL
    return TorchFacts(_executable(), version, cuda, error, arch_list, gpus, name, driver, files)


def find_gpu_problem(f: TorchFacts) -> Problem | None:
    """Return why torch cannot use the GPUs here, and the repair. None if it can, or if there are none."""
    return find_unseen_gpu(f) or find_lacking_code(f)


def refuse_unusable_gpu(otherwise: str, local_rank: int = 0) -> None:
    """Raise UserError if torch cannot use this process's GPU.

    Args:
        otherwise: what to do without a GPU.
    """
    f = gather_torch()
    own = f.gpus[local_rank : local_rank + 1] or f.gpus
    if (problem := find_gpu_problem(replace(f, gpus=own))) is not None:
        found, fix = problem
        raise UserError(f"{found}. To repair this: {fix}. Or {otherwise}")


def find_unseen_gpu(f: TorchFacts) -> Problem | None:
    """Return the reason why torch sees no GPU on a machine that has one."""
    if f.gpus or f.driver_gpu is None:
        return None
    if f.torch_cuda is None:
        fix = install(f, f"--force-reinstall torch torchvision {CU126}")
        return f"{f.driver_gpu}, but torch was built for CPUs only", fix
    if not f.device_files:
        fix = "give the container the GPUs: docker run --gpus all"
        return f"{f.driver_gpu}, but this container has no /dev/nvidia0", fix
    driver = (f.driver or "").partition(".")[0]
    oldest = DRIVERS.get(f.torch_cuda.partition(".")[0], 0)
    if driver.isdigit() and int(driver) < oldest:
        found = f"{f.driver_gpu} with driver {f.driver}, which is too old for torch {f.torch} with CUDA {f.torch_cuda}"
        other = (
            f", or {install(f, f'--force-reinstall torch torchvision {CU126}')}" if int(driver) >= DRIVERS["12"] else ""
        )
        return found, f"update the driver to {oldest} or newer{other}"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return f"{f.driver_gpu}, but torch sees none with CUDA_VISIBLE_DEVICES={visible}", "unset CUDA_VISIBLE_DEVICES"
    reason = "" if f.torch_error is None else f" ({f.torch_error})"
    return f"{f.driver_gpu}, but torch does not see it{reason}", "nvidia-smi. Update the driver for torch's CUDA"


def find_lacking_code(f: TorchFacts) -> Problem | None:
    """Return the GPUs whose architecture torch was not built for."""
    lacking = [c for c in sorted({gpu.capability for gpu in f.gpus}) if not _has_code(c, f.arch_list)]
    if not lacking:
        return None
    named, oldest = ", ".join(map(sm, lacking)), lacking[0]
    bound = f'"torch<{TORCH_WITHOUT_VOLTA}"' if oldest == VOLTA else "torch"
    wheels = "" if oldest >= (8, 0) else f" {CU126}"
    fix = install(f, f"--force-reinstall {bound} torchvision{wheels}")
    return f"torch {f.torch} was not built for {named}", fix


def sm(capability: tuple[int, int]) -> str:
    return f"sm_{capability[0]}{capability[1]}"


def install(f: TorchFacts, what: str) -> str:
    """Return a pip command for the running Python, because a bare `pip` may belong to another one."""
    return f"{f.executable} -m pip install {what}"


def _has_code(capability: tuple[int, int], arch_list: tuple[str, ...]) -> bool:
    """Check if code for any entry in `arch_list` runs on the GPU.

    sm_XY runs on the same major version from minor Y on, and compute_XY on all newer ones.
    """
    for arch in arch_list:
        kind, _, digits = arch.partition("_")
        digits = digits.rstrip("af")
        if not digits.isdigit():
            continue
        built = int(digits[:-1]), int(digits[-1])
        if built <= capability and (kind == "compute" or (kind == "sm" and built[0] == capability[0])):
            return True
    return False


def _torch() -> tuple[str | None, str | None, str | None, tuple[str, ...], tuple[GpuFacts, ...]]:
    try:
        import torch
    except Exception:  # a broken installation can raise anything
        return None, None, None, (), ()
    with warnings.catch_warnings(record=True) as said:  # torch's warning has several lines. The caller's has one
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        found = map(torch.cuda.get_device_properties, range(count))
        gpus = tuple(GpuFacts(p.name, (p.major, p.minor), p.total_memory) for p in found)
    reason = next((str(w.message).removeprefix("CUDA initialization: ") for w in said if not gpus), None)
    reason = reason and reason.partition(" (Triggered")[0].partition(". ")[0]
    return torch.__version__, torch.version.cuda, reason, tuple(torch.cuda.get_arch_list()), gpus


def _driver() -> tuple[str | None, str | None]:
    """Return (the first GPU's name, the driver's version). The name is None if there is no GPU."""
    models = [
        line.partition(":")[2].strip() for path in sorted(PROC.glob("gpus/*/information"))
        for line in _lines(path) if line.startswith("Model:")
    ]  # fmt: skip
    version = next((w for line in _lines(PROC / "version") for w in line.split() if w[:1].isdigit() and "." in w), None)
    if models:
        return models[0], version
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):  # it is missing, fails or hangs
        return ("an NVIDIA GPU", version) if any(DEVICES.glob("nvidia[0-9]*")) else (None, version)
    name, _, version = next(iter(done.stdout.splitlines()), "").partition(", ")
    return name or None, version or None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _executable() -> str:
    """Return this Python's path, relative if it is below the working directory, such as .venv/bin/python."""
    path, here = Path(sys.executable), Path.cwd()
    inside = path.is_relative_to(here) and path.parent != here  # because a bare name would be searched in PATH
    return shlex.quote(str(path.relative_to(here) if inside else path))
