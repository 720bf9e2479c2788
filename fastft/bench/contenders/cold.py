"""In a contender's process: passes over files that are not in the page cache."""

import ctypes
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from fastft.bench.child import Arm
from fastft.bench.contenders.measuring import found
from fastft.bench.contenders.task import Task

MADV_DONTNEED = 4  # linux/mman.h


def cold(file: str, name: str, task: dict[str, Any], options: dict[str, Any]) -> dict[str, Arm]:
    """Make whole passes, dropping the files from the page cache before each. Reports the MB read from the disk too.

    A .beton is copied first, because pages that another contender's process has mapped cannot be dropped.
    """
    loader, asked = found(file, name), Task(**task)
    if file in ("ours", "ffcv"):
        paths = [own_copy(Path(asked.files["beton"]))]
        asked = replace(asked, files={**asked.files, "beton": str(paths[0])})
    elif file == "webdataset":
        folder, _, stem = asked.files["shards"].partition("{")[0].rpartition("/")
        paths = sorted(Path(folder).glob(f"{stem}*.tar"))
    else:
        paths = sorted(Path(asked.files["folder"]).glob("*/*"))
    one_pass = loader.make(asked, **options)

    def run() -> dict[str, float]:
        forget_pages(paths)
        before, began = read_bytes(), time.perf_counter()
        count = sum(one_pass())
        seconds = time.perf_counter() - began
        return {"count": count, "seconds": seconds, "read_mb": (read_bytes() - before) / 1e6}

    return {"pass": run}


def own_copy(path: Path) -> Path:
    """Return a copy of the file, flushed to the disk."""
    copy = path.with_name(f"{path.stem}-{os.getpid()}.beton")
    shutil.copyfile(path, copy)
    with copy.open("rb") as file:
        os.fsync(file.fileno())
    return copy


def forget_pages(paths: list[Path]) -> None:
    """Drop files from the page cache, after dropping this process's memory maps, which would keep them there."""
    libc = ctypes.CDLL(None, use_errno=True)
    for begin, end in _mapped({str(path.resolve()) for path in paths}):
        libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), MADV_DONTNEED)
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())  # because a page that is not written yet cannot be dropped
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _mapped(names: set[str]) -> Iterator[tuple[int, int]]:
    for line in Path("/proc/self/maps").read_text().splitlines():
        columns = line.split(maxsplit=5)
        if len(columns) == 6 and columns[5] in names:
            begin, end = columns[0].split("-")
            yield int(begin, 16), int(end, 16)


def read_bytes() -> int:
    """Return the bytes that this process and its workers have read from the disk."""
    own = psutil.Process()
    return sum(process.io_counters().read_bytes for process in (own, *own.children(recursive=True)))
