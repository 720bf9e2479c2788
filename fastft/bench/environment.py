"""The machine and libraries that a benchmark ran on."""

import importlib.metadata
import os
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from fastft.machine.facts import GIB, cpu_name

LIBRARIES = (
    "ffcv", "timm", "torchvision", "open_clip_torch", "numba", "pillow", "opencv-python", "nvidia-dali-cuda120",
    "webdataset", "litdata",
)  # fmt: skip


def describe_machine() -> dict[str, Any]:
    """Processor, memory, GPU, and library versions of all contenders."""
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "hardware_threads": "two to a core" if _smt() else "one to a core, as this system reports it",
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "os": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "versions": ", ".join(f"{name} {version}" for name in LIBRARIES if (version := _version(name))),
    }


def load() -> str:
    """The load average over the last minute."""
    return f"{os.getloadavg()[0]:.1f}"


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _smt() -> bool:
    try:
        return Path("/sys/devices/system/cpu/smt/active").read_text().strip() == "1"
    except OSError:
        return False


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
