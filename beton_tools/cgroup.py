"""CPU and memory limits of this process's control group (cgroup v2), as set for containers and batch jobs.

A group's limit also applies to the groups below it, so the smallest limit on the path to the root is in force. File format:
docs.kernel.org/admin-guide/cgroup-v2.html.
"""

import os
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")  # "0::/path below ROOT"; other lines are of version 1


def usable_cpus() -> int:
    """CPUs that this process may use: by its affinity and by the CPU limit of its control group, at least 1."""
    allowed, limit = len(os.sched_getaffinity(0)), cpu_limit()
    return allowed if limit is None else max(1, min(allowed, int(limit)))


def cpu_limit() -> float | None:
    """CPU limit in cores; None if there is none."""
    quotas = [text.split() for text in _read_all("cpu.max")]  # quota and period in microseconds
    return min((int(q[0]) / int(q[1]) for q in quotas if q[0] != "max"), default=None)


def memory_limit() -> int | None:
    """Memory limit in bytes; None if there is none."""
    return min((int(text) for text in _read_all("memory.max") if text != "max"), default=None)


def _read_all(name: str) -> list[str]:
    """Contents of the file in the own group and in each of its parents, where it exists."""
    texts = []
    for folder in _groups():
        try:
            texts.append((folder / name).read_text(encoding="ascii").strip())
        except OSError:  # the root has no such file; a container may not see its parents
            continue
    return [text for text in texts if text]


def _groups() -> list[Path]:
    try:
        lines = OWN.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    own = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "/")
    names = own.strip("/").split("/")
    return [ROOT.joinpath(*names[:depth]) for depth in range(len(names), -1, -1)]
