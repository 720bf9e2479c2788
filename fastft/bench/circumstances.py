"""The circumstances of a benchmark: processor, memory, GPU, libraries, the commit, and how busy the machine was."""

import os
import platform
import subprocess
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import psutil
import torch

from beton_tools.base.cgroup import usable_cpus
from fastft.machine.bench_result import Machine, Session
from fastft.machine.facts import GIB, cpu_name, memory_bytes, package_version

LIBRARIES = (
    "torch", "ffcv", "numba", "numpy", "timm", "torchvision", "pillow", "simplejpeg", "opencv-python", "nvidia-dali-cuda120",
    "nvidia-dali-cuda130", "webdataset", "litdata", "spdl",
)  # fmt: skip
# flags in /proc/cpuinfo by which decoders, resizing and matrix products choose their code
INSTRUCTION_SETS = (
    "sse4_2", "avx", "avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8",
    "asimd", "asimddp", "bf16", "sve", "sve2",
)  # fmt: skip


def describe_machine() -> Machine:
    return Machine(
        cpu=cpu_name(),
        instruction_sets=instruction_sets(),
        cores=usable_cpus(),
        memory_gib=round(memory_bytes()[0] / GIB, 1),
        kernel=platform.release(),
        system=_system(),
        python=platform.python_version(),
        libraries={name: version for name in LIBRARIES if (version := package_version(name))},
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        gpus=torch.cuda.device_count(),
        driver=_driver(),
    )


def instruction_sets() -> list[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return [name for name in INSTRUCTION_SETS if name in flags]


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def _driver() -> str | None:
    if not torch.cuda.is_available():
        return None
    return _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0")


def commit() -> tuple[str | None, bool | None]:
    """Return the commit that fastft runs from, and whether its files have changed; (None, None) for a wheel install."""
    root = Path(__file__).parents[2]
    if not (root / "pyproject.toml").is_file():  # site-packages may lie in somebody else's repository
        return None, None
    name = _output("git", "-C", str(root), "rev-parse", "HEAD")
    changes = _output("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no")
    return name or None, None if not name or changes is None else bool(changes)


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@dataclass(frozen=True)
class Watch:
    """Measure a session: begin with `Watch.start()`, then ask for the session as often as you need."""

    command: str
    date: str
    began: float
    load: float
    cpu_seconds: float
    steal_seconds: float

    @classmethod
    def start(cls, command: str) -> "Watch":
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return cls(command, date, time.monotonic(), os.getloadavg()[0], *_cpu_seconds())

    def session(self) -> Session:
        total, steal = _cpu_seconds()
        passed = total - self.cpu_seconds
        return Session(
            command=self.command,
            date=self.date,
            seconds=round(time.monotonic() - self.began, 1),
            load_before=round(self.load, 2),
            load_after=round(os.getloadavg()[0], 2),
            steal=round((steal - self.steal_seconds) / passed, 4) if passed > 0 else 0.0,
        )


def _cpu_seconds() -> tuple[float, float]:
    """Return all the machine's CPU seconds since it started, including idle ones, and the stolen ones."""
    times = psutil.cpu_times()
    return sum(times[:8]), getattr(times, "steal", 0.0)
