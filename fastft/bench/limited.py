"""In a contender's process: epochs over a file that is larger than the memory, and what the disk was asked for.

The limit uses control groups version 1, which only root may create.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastft.bench.child import Arm
from fastft.bench.ways import build, forget_pages

GROUPS, NAME = Path("/sys/fs/cgroup"), "fastft-bench-"
NO_LIMIT = 10**12  # bytes/s; a limit is needed because only disks with a limit are counted
CONTROLLERS = ("memory", "blkio")


def refusal() -> str:
    """Say why this machine cannot limit memory; empty if it can."""
    groups = (GROUPS / "memory" / "memory.limit_in_bytes").exists() and (GROUPS / "blkio").is_dir()
    if os.geteuid() == 0 and groups:
        return ""
    return "It limits memory with control groups of version 1, which only root can create."


def limited(limit: int, **given: Any) -> dict[str, Arm]:
    """Run epochs with `limit` bytes of memory, in addition to what the process holds after its first epoch."""
    one_epoch = build(**given)
    sum(one_epoch())  # allocates the buffers outside the groups
    forget_pages([Path(given["task"]["files"]["beton"])])
    blkio = join_groups(limit)

    def run() -> dict[str, float]:
        before = disk_reads(blkio)
        count = sum(one_epoch())
        read, requests = (after - earlier for after, earlier in zip(disk_reads(blkio), before, strict=True))
        return {"count": count, "read_mb": read / 1e6, "requests": requests}

    return {"pass": run}


def join_groups(limit: int) -> Path:
    """Move this process into new groups that limit memory and count reads, and return the second group's folder."""
    for controller in CONTROLLERS:
        group = GROUPS / controller / f"{NAME}{os.getpid()}"
        group.mkdir()
        if controller == "memory":
            (group / "memory.limit_in_bytes").write_text(str(limit))
        for disk in Path("/sys/block").glob("*/dev") if controller == "blkio" else ():
            rule = f"{disk.read_text().strip()} {NO_LIMIT}"
            (group / "blkio.throttle.read_bps_device").write_text(rule)
        (group / "cgroup.procs").write_text(str(os.getpid()))
    return group


def remove_groups() -> None:
    """Remove the groups whose processes have ended."""
    for group in (g for controller in CONTROLLERS for g in (GROUPS / controller).glob(f"{NAME}*")):
        with suppress(OSError):  # still in use
            group.rmdir()


def disk_reads(blkio: Path) -> tuple[int, int]:
    """Return the bytes and requests that the group's processes have read from disks."""
    counts = []
    for name in ("blkio.throttle.io_service_bytes", "blkio.throttle.io_serviced"):
        lines = [line.split() for line in (blkio / name).read_text().splitlines()]
        counts.append(sum(int(line[2]) for line in lines if len(line) == 3 and line[1] == "Read"))
    return counts[0], counts[1]
