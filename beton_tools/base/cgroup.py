"""Limits on CPU, memory and processes of this process's control group, which containers and batch jobs set.

A group's limit also applies to the groups below it, so the smallest limit on the path to the root is in force. The
files are described in docs.kernel.org/admin-guide/cgroup-v2.html, and for version 1, which older clusters use, in
cgroup-v1/memory.html and scheduler/sched-bwc.html.
"""

import math
import os
import resource
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")  # "0::/path below ROOT"; version 1: "4:memory:/path below ROOT/memory"
UNLIMITED = 1 << 62  # version 1 has a number near 2^63 instead of "max"
UNLIMITED_CPU = ("max", "-1")  # in version 2 and in version 1


def usable_cpus(process: int = 0) -> int:
    """Return how many CPUs this process may use, which is at least 1.

    Two limits are combined: the CPU affinity of `process` (0: this process) and the CPU limit of this process's control
    group.
    """
    allowed, limit = len(os.sched_getaffinity(process)), cpu_limit()
    return allowed if limit is None else max(1, min(allowed, int(limit)))


def cpu_limit() -> float | None:
    """Return the CPU limit in cores, or None if there is none."""
    quotas = _read_all(["cpu.max"]) + _read_all(["cpu.cfs_quota_us", "cpu.cfs_period_us"], "cpu")
    pairs = [text.split() for text in quotas]  # quota and period in microseconds
    return min((int(quota) / int(period) for quota, period in pairs if quota not in UNLIMITED_CPU), default=None)


def memory_limit() -> int | None:
    """Return the memory limit in bytes, or None if there is none."""
    limits = [int(text) for text in _read_all(["memory.max"]) if text != "max"]
    limits += [int(text) for text in _read_all(["memory.limit_in_bytes"], "memory")]
    return min((limit for limit in limits if limit < UNLIMITED), default=None)


def process_room() -> float:
    """Return how many more processes and threads may be started: by the control group (pids.max) and by `ulimit -u`."""
    groups = [text.split() for text in _read_all(["pids.max", "pids.current"])]
    groups += [text.split() for text in _read_all(["pids.max", "pids.current"], "pids")]
    room = [int(most) - int(now) for most, now in groups if most != "max"]
    limit, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if limit != resource.RLIM_INFINITY and os.getuid() != 0:  # root has no limit
        room.append(limit - _tasks_of_user())
    return min(room, default=math.inf)


def _tasks_of_user() -> int:
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            if process.stat().st_uid == os.getuid():
                count += len(os.listdir(process / "task"))  # noqa: PTH208 - only the number
    return count


def _read_all(names: Sequence[str], controller: str = "") -> list[str]:
    """Read files in this process's group and in each parent group, wherever they exist. Returns a line per group.

    Args:
        controller: The controller's name in version 1.
    """
    texts = []
    for folder in _groups(controller):
        try:
            texts.append(" ".join((folder / name).read_text(encoding="ascii").strip() for name in names))
        except OSError:  # the root has no such file, and a container may not see its parents
            continue
    return [text for text in texts if text]


def _groups(controller: str) -> list[Path]:
    try:
        lines = [line.split(":", 2) for line in OWN.read_text(encoding="utf-8").splitlines()]
    except OSError:
        lines = []
    own = next((words[2] for words in lines if len(words) == 3 and controller in words[1].split(",")), "/")
    names = own.strip("/").split("/")
    return [ROOT.joinpath(controller, *names[:depth]) for depth in range(len(names), -1, -1)]
