"""In a contender's process: a loader's arms, by the loader's file in this folder and its name."""

import os
import threading
import time
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

from fastft.bench.child import Arm
from fastft.bench.contenders import own
from fastft.bench.contenders.task import Loader, Pass, Task

SAMPLE_SECONDS = 0.05  # interval between memory samples


def warm(file: str, name: str, task: dict[str, Any], options: dict[str, Any]) -> dict[str, Arm]:
    """Make whole passes with the files in the page cache."""
    one_pass = built(file, name, task, options)
    return {"pass": lambda: sum(one_pass())}


def first(file: str, name: str, task: dict[str, Any], options: dict[str, Any]) -> dict[str, Arm]:
    """Measure seconds from Python's start to the first batch, including imports, and peak MB over the pass."""
    if prepare := found(file, name).prepare:
        prepare(Task(**task))

    def run() -> dict[str, float]:
        with PeakMemory() as peak:
            began = time.perf_counter()
            batches = built(file, name, task, options)()
            count = next(batches)
            seconds = time.perf_counter() - began
            count += sum(batches)
        return {"count": count, "seconds": seconds, "memory_mb": peak.mb}

    return {"first": run}


def built(file: str, name: str, task: dict[str, Any], options: dict[str, Any]) -> Pass:
    return found(file, name).make(Task(**task), **options)


def found(file: str, name: str) -> Loader:
    """Return a loader from a file in this folder. For "own" it is the user's loader, and its name says where it is."""
    if file == "own":
        return own.loader(name)
    rows: Iterable[Loader] = import_module(f"fastft.bench.contenders.{file}").LOADERS
    return next(row for row in rows if row.name == name)


class PeakMemory(threading.Thread):
    """Sample the memory used by this process and its workers, and keep the highest sum, in MB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.mb = 0.0
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            self.mb = max(self.mb, used_mb())

    def __enter__(self) -> "PeakMemory":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()
        self.mb = max(self.mb, used_mb())


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
