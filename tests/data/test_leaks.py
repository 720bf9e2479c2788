"""Loaders are small, and leave neither memory nor file descriptors nor threads behind."""

import os
import threading
import tracemalloc
from pathlib import Path

import numpy as np

from beton_tools.read.format import DEFAULT_PAGE_SIZE, SAMPLE_DTYPE, align_up, first_page_offset, write_tables
from fastft.augment.policies import AugmentPolicy
from fastft.data.loader import EvalLoader, TrainLoader
from fastft.data.stage import Output
from fastft.recipe.constants import IMAGENET_TRAIN_SIZE as IMAGENET_LENGTH

WARM_UP = 10  # loaders, until compiled code and the allocator's pools are in place


def open_read_close(path: Path) -> None:
    policy, output = AugmentPolicy("rand-m9-mstd0.5-inc1"), Output(32)
    with TrainLoader(path, policy, output, batch_size=8, workers=2) as loader:
        for _ in loader.epoch(0):
            pass
    with EvalLoader(path, policy, output, batch_size=8, workers=2) as loader:
        for _ in loader:
            pass


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


def open_files_and_threads() -> tuple[int, int]:
    return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()


def test_sixty_loaders_leak_no_memory(indexed_beton):
    """With a function compiled per loader they left 58 MB."""
    for _ in range(WARM_UP // 2):
        open_read_close(indexed_beton)
    before, resident = open_files_and_threads(), resident_mb()
    for _ in range(30):
        open_read_close(indexed_beton)
    assert all(now <= then for now, then in zip(open_files_and_threads(), before, strict=True))
    assert resident_mb() - resident < 10


BUDGET = 100e6  # bytes beyond the metadata; stock FFCV takes 634 MB
WORKERS = 2  # each has scratch memory, whatever the file's length


def write_imagenet_length(path: Path, num_bytes: int = 1024) -> None:
    """A sparse .beton with the tables of 1,281,167 images and holes for their bytes."""
    rows = np.zeros(IMAGENET_LENGTH, SAMPLE_DTYPE)
    first = first_page_offset(IMAGENET_LENGTH, DEFAULT_PAGE_SIZE)
    pointers = first + num_bytes * np.arange(IMAGENET_LENGTH, dtype=np.uint64)
    end = align_up(int(pointers[-1]) + num_bytes, DEFAULT_PAGE_SIZE)
    rows["f0"]["width"], rows["f0"]["height"], rows["f0"]["data_ptr"] = 500, 375, pointers
    rows["f1"] = np.arange(IMAGENET_LENGTH) % 1000
    sizes = np.full(IMAGENET_LENGTH, num_bytes)
    with path.open("wb") as file:
        write_tables(file, rows, sizes, page_size=DEFAULT_PAGE_SIZE, data_start=first, data_end=end)


def test_a_file_of_imagenets_length_opens_in_little_memory(tmp_path):
    path, policy = tmp_path / "long.beton", AugmentPolicy()
    write_imagenet_length(path)
    tracemalloc.start()
    try:
        loader = TrainLoader(path, policy, Output(224), batch_size=256, micro_batch=1, workers=WORKERS)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (loader.num_samples, loader.num_classes) == (IMAGENET_LENGTH, 1000)
    assert peak < IMAGENET_LENGTH * SAMPLE_DTYPE.itemsize + BUDGET
    loader.close()
