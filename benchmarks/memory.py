"""Measure what very long files take in a host's memory, and how long the first batch waits for its order.

    python benchmarks/memory.py                     # writes benchmarks/results/memory.json; about ten minutes, 5 GB of disk
    python benchmarks/memory.py --before TREE       # measures another version's code too, which lies in TREE

The files are synthetic: tables as of 57 kB JPEGs in pages of 8 MiB, and holes in place of the images. Several processes open a
file as `fastft train` does under torchrun, then start an epoch, without decoding. Memory is the sum over the processes, pages
that they share counted once, less what they had before they opened the file. A row is left out where it might not fit.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from records import FOLDER, Row, store

from beton_tools.read.format import (
    ALLOC_DTYPE,
    DEFAULT_PAGE_SIZE,
    FIELD_DTYPE,
    HEADER_DTYPE,
    OUR_FIELDS,
    SAMPLE_DTYPE,
    VERSION,
    first_page_offset,
)
from fastft.bench.ways import PeakMemory
from fastft.machine.facts import memory_bytes

COUNTS, PROCESSES, ORDERS = (1_000_000, 10_000_000, 100_000_000), (1, 2, 4), ("random", "blocks")
IMAGE_BYTES, HEIGHT, WIDTH, CLASSES = 57_000, 375, 500, 1000
ROWS = 1 << 20  # of a table, written at once
BATCH, SIZE = 2048, 224
STEP = 256  # of smaller batch sizes: 64 images in each of four processes
# bytes an image at the peak, to leave out what might not fit: in each process, in all of them
EXPECTED = {"now": (0, 64), "before": (100, 0)}
ANONYMOUS_FILE = "/memfd:fastft"  # see beton_tools.base.shared_arrays
SHARE = 0.7  # of the available memory
WORKER = """
import os, sys, time
import torch
from beton_tools.read.beton_set import BetonSet
from fastft.data import loader as loading
from fastft.data.order import Shard
from fastft.machine.distributed import find_world

path, order, batch, size = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])

def say(what):
    world.barrier()
    if world.is_main:
        print(what, flush=True)
        sys.stdin.readline()  # until the parent has looked
    world.barrier()

def work():
    betons = BetonSet.open(path)
    betons.content
    return betons

def run(ids, slot, draw):
    return torch.empty(0), torch.empty(0)

with find_world("cpu") as world:
    say("begun")
    betons = world.once_per_host(work, path) if hasattr(world, "once_per_host") else work()
    say("opened")
    loader = loading.TrainLoader(betons, "none", size, batch_size=batch, shard=Shard(world.rank, world.size), workers=1,
                                 micro_batch=64, order=order)
    loader.stage.run = run
    say("built")
    batches = loader.epoch(0)
    next(batches)
    say("first batch")
    batches.close()
    loader.close()
"""


def write_long(path: Path, count: int) -> None:
    """Write a .beton of `count` images, which are holes in the file."""
    per_page = DEFAULT_PAGE_SIZE // IMAGE_BYTES
    start = first_page_offset(count, DEFAULT_PAGE_SIZE)
    end = start + -(-count // per_page) * DEFAULT_PAGE_SIZE
    fields = np.zeros(len(OUR_FIELDS), FIELD_DTYPE)
    for row, (name, type_id) in zip(fields, OUR_FIELDS, strict=True):
        row["type_id"] = type_id
        row["name"][: len(name)] = np.frombuffer(name.encode(), np.uint8)
    header = np.array([(VERSION, len(fields), DEFAULT_PAGE_SIZE, count, end)], HEADER_DTYPE)
    tables = header.nbytes + fields.nbytes
    with path.open("wb") as file:
        file.write(header.tobytes() + fields.tobytes())
        for first in range(0, count, ROWS):
            ids = np.arange(first, min(first + ROWS, count))
            samples, allocated = np.zeros(len(ids), SAMPLE_DTYPE), np.zeros(len(ids), ALLOC_DTYPE)
            places = start + ids // per_page * DEFAULT_PAGE_SIZE + ids % per_page * IMAGE_BYTES
            samples["f0"]["width"], samples["f0"]["height"], samples["f0"]["data_ptr"] = WIDTH, HEIGHT, places
            samples["f1"] = ids * 7919 % CLASSES
            allocated["sample_id"], allocated["ptr"], allocated["size"] = ids, places, IMAGE_BYTES
            file.seek(tables + first * SAMPLE_DTYPE.itemsize)
            file.write(samples.tobytes())
            file.seek(end + first * ALLOC_DTYPE.itemsize)
            file.write(allocated.tobytes())


def used_mb(pids: Sequence[int]) -> float:
    """Return the MB that the system cannot drop.

    Pages that several processes share count once, also where none has read them yet.
    """
    kilobytes, shared = 0, {}
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            kilobytes += sum(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon"))
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                if ANONYMOUS_FILE in line:
                    place, _, _, _, inode, *_ = line.split()
                    begin, end = (int(text, 16) for text in place.split("-"))
                    shared[inode] = end - begin
            for opened in Path(f"/proc/{pid}/fd").iterdir():
                if ANONYMOUS_FILE in os.readlink(opened):  # noqa: PTH115 - the target is no path
                    status = opened.stat()
                    shared[str(status.st_ino)] = status.st_blocks * 512
        except OSError:  # the process has ended
            continue
    return ((kilobytes << 10) + sum(shared.values())) / 1e6


def measure(tree: Path, path: Path, processes: int, order: str, batch: int) -> dict[str, float]:
    """Return bytes at the peak of each stage and after it, above the start, and the seconds of each stage."""
    environment = os.environ | {
        "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29761",
        "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes),
    }  # fmt: skip
    running = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(path), order, str(batch), str(SIZE)], cwd=tree, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(processes)
    ]  # fmt: skip
    main, used = running[0], partial(used_mb, [process.pid for process in running])
    assert main.stdout is not None and main.stdin is not None
    found: dict[str, float] = {}
    with PeakMemory(used) as memory:
        began = start = 0.0
        for stage in ("begun", "opened", "built", "first batch"):
            said = main.stdout.readline().strip()
            seconds, peak = time.perf_counter() - began, memory.take()
            assert said == stage, f"{stage}: {said}"
            if stage == "begun":
                start = used()
            else:
                megabytes = {f"{stage}, peak": peak, f"{stage}, after": used()}
                found |= {f"{stage}, s": seconds} | {key: round(1e6 * (mb - start)) for key, mb in megabytes.items()}
            memory.take()
            began = time.perf_counter()
            main.stdin.write("\n")
            main.stdin.flush()
    assert [process.wait(600) for process in running] == [0] * processes
    return found


def measure_all(trees: dict[str, Path], folder: Path, counts: list[int], processes: list[int]) -> list[Row]:
    rows = []
    for count in counts:
        path = folder / "long.beton"
        write_long(path, count)
        batch = min(BATCH, count // STEP * STEP)
        for order in ORDERS:
            for number in processes:
                for code, tree in trees.items():
                    each, shared = EXPECTED[code]
                    fits = count * (each * number + shared) < SHARE * memory_bytes()[1]
                    row = {"code": code, "images": count, "processes": number, "order": order}
                    rows.append(row | (measure(tree, path, number, order, batch) if fits else {}))
                    print(rows[-1], flush=True)
        path.unlink()
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="a checkout of the version to compare with")
    parser.add_argument("--images", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--processes", type=int, nargs="+", default=PROCESSES)
    parser.add_argument("--out", type=Path, default=FOLDER / "memory.json")
    args = parser.parse_args()
    trees = {"now": Path(__file__).parents[1]} | ({"before": args.before.absolute()} if args.before else {})
    with tempfile.TemporaryDirectory() as scratch:
        rows = measure_all(trees, Path(scratch), args.images, args.processes)
    store(args.out, {"memory_bytes": memory_bytes()[0], "rows": rows})
