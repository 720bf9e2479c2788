"""Limits of the control group (cgroup v2) that this process runs in: containers and batch jobs are held to them.

A limit of a group holds for all that lies in it, so that the smallest on the way up to the root counts. The files:
docs.kernel.org/admin-guide/cgroup-v2.html.
"""

from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")  # "0::/path below ROOT"; other lines are of version 1


def cpu_limit() -> float | None:
    """Cores' worth of CPU time; None where there is no limit."""
    quotas = [text.split() for text in _read_all("cpu.max")]  # quota and period in microseconds
    return min((int(q[0]) / int(q[1]) for q in quotas if q[0] != "max"), default=None)


def memory_limit() -> int | None:
    """Bytes; None where there is no limit."""
    return min((int(text) for text in _read_all("memory.max") if text != "max"), default=None)


def _read_all(name: str) -> list[str]:
    """What the file says in the own group and in each that it lies in, as far as it is there."""
    texts = []
    for folder in _groups():
        try:
            texts.append((folder / name).read_text(encoding="ascii").strip())
        except OSError:  # the root has no limits; a container may not see the groups around it
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
