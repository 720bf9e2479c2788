"""The circumstances of a benchmark: processor, memory, GPU, libraries, the commit, and how busy the machine was."""

import importlib.metadata
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from types import MappingProxyType

import psutil
import torch
from PIL import features

from beton_tools.base.cgroup import usable_cpus
from fastft.bench import PEERS
from fastft.bench.task import entries, peer_module
from fastft.machine.bench_result import Machine, Processor, Session
from fastft.machine.facts import GIB, cpu_name, memory_bytes, package_version

LIBRARIES = ("torch", "numba", "numpy", "nvidia-dali-cuda130")  # besides those of the contenders
# flags in /proc/cpuinfo by which decoders, resizing and matrix products choose their code
INSTRUCTION_SETS = (
    "sse4_2", "avx", "avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8",
    "asimd", "asimddp", "bf16", "sve", "sve2",
)  # fmt: skip


VIRTUAL_DISKS = ("vd", "xvd")  # these say that they rotate, whatever is below


def describe_machine() -> Machine:
    processor, has_gpu = describe_processor(), torch.cuda.is_available()
    peers = (entry.package for name in PEERS for entry in entries(peer_module(name)))
    turbo = features.version("libjpeg_turbo")
    try:
        system = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        system = platform.system()
    driver = "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"
    return Machine(
        cpu=cpu_name(),
        instruction_sets=[name for name in INSTRUCTION_SETS if name in processor.flags],
        cores=usable_cpus(),
        memory_gib=round(memory_bytes()[0] / GIB, 1),
        kernel=platform.release(),
        system=system,
        python=platform.python_version(),
        libraries={name: found for name in (*LIBRARIES, *peers) if (found := package_version(name))},
        gpu=torch.cuda.get_device_name() if has_gpu else None,
        gpus=torch.cuda.device_count(),
        driver=_output(*driver) if has_gpu else None,
        processor=processor,
        packages=dict(sorted({d.name: d.version for d in importlib.metadata.distributions() if d.name}.items())),
        codecs={"Pillow's libjpeg-turbo": turbo} if turbo else {},
        disk=describe_disk(Path(tempfile.gettempdir())),
    )


def describe_disk(folder: Path) -> str | None:
    """Return file system, device and kind, such as "ext4 on nvme0n1, solid state". Memory and network have no device."""
    mounts = [m for m in psutil.disk_partitions(all=True) if folder.resolve().is_relative_to(m.mountpoint)]
    system = max(mounts, key=lambda m: len(m.mountpoint)).fstype if mounts else None
    number = folder.stat().st_dev
    device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve()
    disk = next((d for d in (device, device.parent) if (d / "queue" / "rotational").is_file()), None)
    if disk is None:
        return system
    rotates = _read(f"{disk}/queue/rotational").strip() == "1"
    kind = "virtual" if disk.name.startswith(VIRTUAL_DISKS) else "rotating" if rotates else "solid state"
    model = " ".join(_read(f"{disk}/device/model").split())
    return f"{system} on {', '.join(filter(None, (disk.name, model, kind)))}"


def describe_processor() -> Processor:
    """Describe the first processor, as far as the system tells."""
    first = _read("/proc/cpuinfo").partition("\n\n")[0]
    pairs = (line.partition(":")[::2] for line in first.splitlines())
    info = {name.strip(): text.strip() for name, text in pairs if text.strip()}

    def find(*names: str) -> str | None:
        return next((info[name] for name in names if name in info), None)

    flags = (find("flags", "Features") or "").split()
    siblings, cores = (int(info.get(name, "0")) for name in ("siblings", "cpu cores"))
    return Processor(
        vendor=find("vendor_id", "CPU implementer"),
        family=find("cpu family", "CPU architecture"),
        model=find("model", "CPU part"),
        stepping=find("stepping", "CPU revision"),
        microcode=find("microcode"),
        flags=flags,
        threads_per_core=siblings // cores if cores else None,
        is_virtual="hypervisor" in flags,
        governor=_read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip() or None,
    )


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


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


class Watch:
    """Measure a session from now on. Ask for it as often as you need."""

    def __init__(self, command: str, seed: int | None = None) -> None:
        self.command, self.seed, self.date = command, seed, datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.began, self.times, self.load = time.monotonic(), psutil.cpu_times(), _load()

    def session(self, betons: Mapping[str, str] = MappingProxyType({})) -> Session:
        """betons: SHA-256 of the .beton files that were written so far."""
        # CPU seconds, including idle ones; some systems do not count stolen ones
        now, before = psutil.cpu_times(), self.times
        passed, stolen = sum(now[:8]) - sum(before[:8]), getattr(now, "steal", 0.0) - getattr(before, "steal", 0.0)
        return Session(
            command=self.command, date=self.date, seconds=round(time.monotonic() - self.began, 1), load_before=self.load,
            load_after=_load(), steal=round(stolen / passed, 4) if passed > 0 else 0.0, seed=self.seed, betons=dict(betons),
        )  # fmt: skip


def _load() -> float:
    return round(os.getloadavg()[0], 2)
