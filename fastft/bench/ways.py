"""In a contender's process: the ways in which an entry is run, and what each of them measures.

A way takes the module and the name of an entry, its task and options, and returns arms.
"""

import ctypes
import math
import os
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from fastft.bench.child import Arm
from fastft.bench.task import BETON, SHARDS, Entry, Pass, Task, Work, entries, in_memory

SAMPLE_SECONDS = 0.05  # interval between memory samples
MADV_DONTNEED = 4  # linux/mman.h
MEMORY_LIMIT = 100_000_000
PERCENTILES = {"p50_ms": 50, "p95_ms": 95, "p99_ms": 99, "longest_ms": 100}  # of the time between batches


def entered(module: str, name: str, task: dict[str, Any], options: dict[str, Any]) -> tuple[Entry, Task]:
    asked = Task(**task)
    return next(e for e in entries(module) if e.name == name and asked.work in e.work), asked


def build(module: str, name: str, task: dict[str, Any], options: dict[str, Any]) -> Any:
    """Return what the entry makes: a loader's pass, or for other works its arms."""
    entry, asked = entered(module, name, task, options)
    if entry.stages and asked.work == Work.MEMORY:
        return in_memory(asked, entry.stages)
    return entry.make(asked, **options)


def warm(**given: Any) -> dict[str, Arm]:
    """Make whole passes with the files in the page cache, and report the milliseconds between batches.

    An entry that is no loader makes its arms itself.
    """
    one_pass = build(**given)
    if isinstance(one_pass, dict):
        return one_pass

    def run() -> dict[str, float]:
        count, times = 0, []
        for size in one_pass():
            count += size
            times.append(time.perf_counter())
        return {"count": count, **between(times)}

    return {"pass": run}


def between(times: list[float]) -> dict[str, float]:
    """Return percentiles (nearest rank) of the time between batches. The wait for the first one is not included."""
    ordered = sorted(1e3 * (b - a) for a, b in pairwise(times))
    return {key: ordered[math.ceil(q / 100 * len(ordered)) - 1] for key, q in PERCENTILES.items()} if ordered else {}


def first(**given: Any) -> dict[str, Arm]:
    """Measure seconds from Python's start to the first batch, including imports, and peak MB over the pass."""
    entry, asked = entered(**given)
    if entry.prepare:
        entry.prepare(asked)

    def run() -> dict[str, float]:
        with PeakMemory() as peak:
            began = time.perf_counter()
            batches = build(**given)()
            count = next(batches, 0)
            seconds = time.perf_counter() - began
            count += sum(batches)
        return {"count": count, "seconds": seconds, "memory_mb": peak.mb}

    return {"pass": run}


def opening(**given: Any) -> dict[str, Arm]:
    """Measure the seconds to build the loader, and the MB that it holds afterwards.

    The task's files are "beton" and the small file "warm", for which imports and compiled code are loaded beforehand.
    """
    entry, asked = entered(**given)
    entry.make(replace(asked, files={"beton": asked.files["warm"]}), **given["options"])

    def run() -> dict[str, float]:
        before, began = used_mb(), time.perf_counter()
        built = entry.make(asked, **given["options"])
        seconds = time.perf_counter() - began
        figures = {"seconds": seconds, "memory_mb": max(used_mb() - before, 0.0)}
        del built  # kept alive until the memory has been measured
        return figures

    return {"pass": run}


def cold(**given: Any) -> dict[str, Arm]:
    """Make whole passes, dropping the files from the page cache before each. Reports the MB read from the disk too.

    A .beton is copied first, because pages that another contender's process has mapped cannot be dropped.
    """
    entry, asked = entered(**given)
    if entry.reads == BETON:
        beton = Path(asked.files["beton"])
        paths = [beton.with_name(f"{beton.stem}-{os.getpid()}.beton")]
        shutil.copyfile(beton, paths[0])
        asked = replace(asked, files={**asked.files, "beton": str(paths[0])})
    elif entry.reads == SHARDS:
        folder, _, stem = asked.files["shards"].partition("{")[0].rpartition("/")
        paths = sorted(Path(folder).glob(f"{stem}*.tar"))
    else:
        paths = asked.paths
    one_pass: Pass = entry.make(asked, **given["options"])

    def run() -> dict[str, float]:
        forget_pages(paths)
        before, began = read_bytes(), time.perf_counter()
        count = sum(one_pass())
        seconds = time.perf_counter() - began
        return {"count": count, "wall": seconds, "read_mb": (read_bytes() - before) / 1e6}

    return {"pass": run}


def limited(**given: Any) -> dict[str, Arm]:
    """Make whole passes over a file that is larger than the memory, and report what the disk was asked for.

    The process has MEMORY_LIMIT bytes in addition to what it holds after its first pass.
    """
    one_pass = build(**given)
    sum(one_pass())  # allocates the buffers outside the groups
    forget_pages([Path(given["task"]["files"]["beton"])])
    blkio = join_groups(MEMORY_LIMIT)

    def run() -> dict[str, float]:
        before = disk_reads(blkio)
        count = sum(one_pass())
        read, requests = (after - earlier for after, earlier in zip(disk_reads(blkio), before, strict=True))
        return {"count": count, "read_mb": read / 1e6, "requests": requests}

    return {"pass": run}


# memory and the page cache --------------------------------------------------------------------------------------------


class PeakMemory(threading.Thread):
    """Sample the memory used by this process and its workers, or what `used` returns, and keep the highest value, in MB."""

    def __init__(self, used: Callable[[], float] | None = None) -> None:
        super().__init__(daemon=True)
        self.mb, self.used = 0.0, used or used_mb
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            self.mb = max(self.mb, self.used())

    def __enter__(self) -> "PeakMemory":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()
        self.mb = max(self.mb, self.used())

    def take(self) -> float:
        """Return the highest value since the last call."""
        peak, self.mb = max(self.mb, self.used()), 0.0
        return peak


def used_mb() -> float:
    """Return the memory that the system cannot drop: anonymous and shared pages.

    Pages that several processes share count once.
    """
    kilobytes = 0
    for pid in [os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))]:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:  # the process has ended
            continue
        kilobytes += sum(int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon", "Pss_Shmem")))
    return kilobytes * 1024 / 1e6


def forget_pages(paths: list[Path]) -> None:
    """Drop files from the page cache, after dropping this process's memory maps, which would keep them there."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = {str(path.resolve()) for path in paths}
    for mapped in psutil.Process().memory_maps(grouped=False):
        if mapped.path in names:
            begin, end = (int(address, 16) for address in mapped.addr.split("-"))
            libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), MADV_DONTNEED)
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())  # because a page that is not written yet cannot be dropped
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_bytes() -> int:
    """Return the bytes that this process and its workers have read from the disk."""
    own = psutil.Process()
    return sum(process.io_counters().read_bytes for process in (own, *own.children(recursive=True)))


# limited memory -------------------------------------------------------------------------------------------------------

# control groups of version 1, which only root may create
GROUPS, NAME = Path("/sys/fs/cgroup"), "fastft-bench-"
NO_LIMIT = 10**12  # bytes/s; a limit is needed because only disks with a limit are counted
CONTROLLERS = ("memory", "blkio")


def limit_refusal() -> str:
    """Say why this machine cannot limit memory; empty if it can."""
    groups = (GROUPS / "memory" / "memory.limit_in_bytes").exists() and (GROUPS / "blkio").is_dir()
    if os.geteuid() == 0 and groups:
        return ""
    return "It limits memory with control groups of version 1, which only root can create."


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
