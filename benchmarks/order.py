"""Claim: of a file three times as large as the memory, data.order=blocks reads every page once an epoch, in large requests;
random order reads more bytes, image by image.

Setting: real ImageNet images (longest side 500), repeated until the file has 600 MB, in pages of 1 MiB; the page cache is
limited by a memory control group (200 MB, beside what each process allocated before it joined). Batches of 16 at 224 px, no
augmentation beyond crop and flip. Each contender has its own process; it reads one epoch that is not counted, then `rounds`
epochs. Bytes and requests are the control group's count of what reached the disk (blkio). Needs root and version 1 control
groups.
n: 3 rounds, one epoch each.

Run: python benchmarks/order.py --images imagenet-sample --rounds 3 [--json benchmarks/results/order.json]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from beton_tools.read.beton_set import BetonSet
from beton_tools.write.convert import convert_folder
from beton_tools.write.writer import WriteOptions
from fastft.bench.dataset import forget_pages
from fastft.bench.environment import describe_machine, load, now

FILE_BYTES, LIMIT_BYTES = 600_000_000, 200_000_000
PAGE_BYTES, BLOCK_MIB, BATCH, SIZE = 1 << 20, 32, 16, 224
MAX_RESOLUTION = 500  # stock FFCV has scratch memory for the largest image, for every image of five batches
GROUPS, NO_LIMIT = Path("/sys/fs/cgroup"), 10**12
CONTENDERS = {
    "fastft": f"data.order=blocks, blocks of {BLOCK_MIB} MiB",
    "fastft, random order": "",
    "stock FFCV QUASI_RANDOM": f"keeps 2 x batch = {2 * BATCH} pages in its own memory",
}
UNITS = {"MB": "Bytes read per epoch", "requests": "Disk requests per epoch", "images/s": "Images per second"}


# files and control groups ----------------------------------------------------------------------------------------------


def write_file(images: Path, folder: Path, num_bytes: int) -> Path:
    """A file of the images of a folder of class folders, repeated by links until it has about `num_bytes`."""
    paths = sorted(images.glob("*/*"))
    times = max(1, round(num_bytes / sum(path.stat().st_size for path in paths)))
    for copy in range(times):
        for path in paths:
            target = folder / "images" / path.parent.name / f"{copy:03}-{path.name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path.resolve())
    beton = folder / "train.beton"
    convert_folder(
        folder / "images",
        beton,
        WriteOptions(page_size=PAGE_BYTES, shuffle_seed=0, max_resolution=MAX_RESOLUTION),
    )
    with beton.open("rb") as file:
        os.fsync(file.fileno())
    return beton


def join_groups(name: str, limit: int) -> Path:
    """Move this process into new memory and blkio groups; what it allocated before is not counted."""
    for controller in ("memory", "blkio"):
        group = GROUPS / controller / name
        group.mkdir()
        if controller == "memory":
            (group / "memory.limit_in_bytes").write_text(str(limit))
        else:  # only disks with a limit are counted
            for disk in Path("/sys/block").glob("*/dev"):
                (group / "blkio.throttle.read_bps_device").write_text(
                    f"{disk.read_text().strip()} {NO_LIMIT}"
                )
        (group / "cgroup.procs").write_text(str(os.getpid()))
    return GROUPS / "blkio" / name


def leave_groups(name: str) -> None:
    for controller in ("memory", "blkio"):
        (GROUPS / controller / "cgroup.procs").write_text(str(os.getpid()))
        (GROUPS / controller / name).rmdir()


def disk_reads(group: Path) -> tuple[int, int]:
    """(bytes, requests) that processes of the group have read from disks."""
    counts = []
    for name in ("blkio.throttle.io_service_bytes", "blkio.throttle.io_serviced"):
        lines = [line.split() for line in (group / name).read_text().splitlines()]
        counts.append(sum(int(line[2]) for line in lines if len(line) == 3 and line[1] == "Read"))
    return counts[0], counts[1]


# one contender's process -----------------------------------------------------------------------------------------------


def ours(path: str, order: str) -> Callable[[], Iterator[int]]:
    from fastft.data import TrainLoader

    loader = TrainLoader(path, "none", SIZE, batch_size=BATCH, order=order, block_mib=BLOCK_MIB)
    return lambda: (len(batch.ids) for batch in loader)


def ffcv(path: str, order: str) -> Callable[[], Iterator[int]]:
    from ffcv.fields.decoders import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, ToTensor, ToTorchImage

    decode = RandomResizedCropRGBImageDecoder((SIZE, SIZE))
    loader = Loader(
        path, BATCH, len(os.sched_getaffinity(0)), os_cache=False, order=OrderOption[order], seed=0,
        drop_last=True, pipelines={"image": [decode, RandomHorizontalFlip(), ToTensor(), ToTorchImage()]},
    )  # fmt: skip
    return lambda: (len(images) for images, _ in loader)


MAKERS: dict[str, Callable[[str], Callable[[], Iterator[int]]]] = {
    "fastft": lambda path: ours(path, "blocks"),
    "fastft, random order": lambda path: ours(path, "random"),
    "stock FFCV QUASI_RANDOM": lambda path: ffcv(path, "QUASI_RANDOM"),
}


def measure_contender(name: str, path: str, rounds: int, limit: int) -> list[dict[str, float]]:
    """Epochs of one contender in this process, after one that compiles and fills the cache."""
    one_epoch = MAKERS[name](path)
    next(iter(batches := one_epoch()))  # allocates buffers outside the group
    sum(batches)
    forget_pages([Path(path)])
    group_name = f"fastft-order-{os.getpid()}"
    group, trials = join_groups(group_name, limit), []
    for number in range(rounds + 1):
        before, began = disk_reads(group), perf_counter()
        count = sum(one_epoch())
        seconds, after = perf_counter() - began, disk_reads(group)
        if number:
            read, requests = after[0] - before[0], after[1] - before[1]
            trials.append({"MB": read / 1e6, "requests": requests, "images/s": count / seconds})
    forget_pages([Path(path)])
    leave_groups(group_name)
    return trials


# all -------------------------------------------------------------------------------------------------------------------


def run(images: Path, rounds: int) -> list[dict[str, Any]]:
    """One measure for each of UNITS, in the schema of docs/bench-schema.md."""
    trials, failures = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        path = write_file(images, Path(folder), FILE_BYTES)
        size = BetonSet.open(path).file_size
        for name in CONTENDERS:
            command = [
                sys.executable,
                __file__,
                "--contender",
                name,
                "--file",
                str(path),
                "--rounds",
                str(rounds),
            ]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                failures[name] = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            else:
                trials[name] = json.loads(done.stdout.splitlines()[-1])
    setting = {
        "file MB": round(size / 1e6), "memory limit MB": round(LIMIT_BYTES / 1e6), "page MiB": PAGE_BYTES >> 20,
        "batch": BATCH, "rounds": rounds,
    }  # fmt: skip
    return [
        {
            "name": title, "bench": "order", "unit": unit, "better": "higher" if unit == "images/s" else "lower",
            "setting": setting,
            "contenders": [
                {"name": name, "skipped": failures[name]} if name in failures
                else _contender(name, [trial[unit] for trial in trials[name]])
                for name in CONTENDERS
            ],
        }
        for unit, title in UNITS.items()
    ]  # fmt: skip


def _contender(name: str, values: list[float]) -> dict[str, Any]:
    return {
        "name": name, "rounds": values, "median": float(np.median(values)), "min": min(values), "max": max(values),
        "note": CONTENDERS[name],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, help="folder with a folder of JPEGs per class")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        print(
            json.dumps(measure_contender(arguments.contender, arguments.file, arguments.rounds, LIMIT_BYTES))
        )
        return
    document: dict[str, Any] = {
        "machine": describe_machine(), "date": now(),
        "command": f"python benchmarks/order.py --images {arguments.images.name} --rounds {arguments.rounds}",
        "notes": [f"load of the machine at the start {load()}"], "measures": run(arguments.images, arguments.rounds),
    }  # fmt: skip
    for measure in document["measures"]:
        for found in measure["contenders"]:
            value = found.get("skipped") or f"{median(found['rounds']):,.0f} {measure['unit']}"
            print(f"{measure['name']:26}{found['name']:26}{value}")
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
