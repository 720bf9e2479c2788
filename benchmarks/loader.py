"""Loader throughput, memory and opening time against stock FFCV and timm, on the same JPEGs.

Claim: with the paper's whole recipe our loader makes more images per second and core than stock FFCV makes
with crop and flip alone, in less memory, and opens a file of ImageNet's length at once.

Setting: a real ImageNet sample (FASTFT_IMAGENET_SAMPLE), longest side 500, q90, 4:2:0; every loader reads
these same JPEG bytes, on all cores of this process. Ours gives normalised float32, as timm does; stock FFCV
uint8, or float32 where it says "normalise". Rounds alternate between the loaders; medians are reported, with
the range. The first round is not counted: it compiles. Memory and opening are measured in fresh processes.

    python benchmarks/loader.py --json loader.json
"""

import argparse
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

os.environ.setdefault("OPENCV_FOR_THREADS_NUM", "1")  # stock FFCV resizes with OpenCV inside its own threads

import numpy as np
import torch

from beton_tools.format import (
    ALLOC_DTYPE,
    DEFAULT_PAGE_SIZE,
    FIELD_DTYPE,
    HEADER_DTYPE,
    IMAGE_TYPE,
    INT_TYPE,
    SAMPLE_DTYPE,
    VERSION,
    Beton,
    align_up,
)

RECIPE = "rand-m9-mstd0.5-inc1"  # and random erasing 0.25: the paper's
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_LENGTH = 1_281_167
SIDE = 500
MEMORY_BATCH = 256
CORES = len(os.sched_getaffinity(0))

Epoch = Callable[[], int]  # iterates once, returns how many images it saw


# the loaders


def ours(path: Path, args: argparse.Namespace, augment: str, dtype: torch.dtype = torch.float32) -> Epoch:
    from fastft.augment import parse_policy
    from fastft.data import TrainLoader

    policy = parse_policy(augment, erase_prob=0.0 if augment == "none" else 0.25)
    loader = TrainLoader(
        path, policy, size=args.size, seed=0, batch_size=args.batch, micro_batch=args.batch, workers=CORES,
        mean=MEAN, std=STD, device="cpu", dtype=dtype, subset=repeated(path, args),
    )  # fmt: skip
    epochs = iter(range(1 << 30))
    return lambda: sum(len(batch.ids) for batch in loader.epoch(next(epochs)))


def stock(path: Path, args: argparse.Namespace, normalise: bool = False) -> Epoch:
    from ffcv.fields.decoders import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, ToTensor, ToTorchImage

    operations = [RandomResizedCropRGBImageDecoder((args.size, args.size)), RandomHorizontalFlip()]
    if normalise:
        operations.append(NormalizeImage(255 * np.array(MEAN), 255 * np.array(STD), np.float32))
    loader = Loader(
        str(path), args.batch, CORES, order=OrderOption.RANDOM, seed=0, indices=repeated(path, args),
        pipelines={"image": [*operations, ToTensor(), ToTorchImage()]},
    )  # fmt: skip
    return lambda: sum(len(images) for images, _ in loader)


def repeated(path: Path, args: argparse.Namespace) -> np.ndarray | None:
    """Every sample `--repeat` times; None: once."""
    if args.repeat == 1:
        return None
    return np.tile(np.arange(Beton.open(path).num_samples), args.repeat)


def timm_folder(path: Path, args: argparse.Namespace, augment: str) -> Epoch:
    import timm.data

    class Patient(timm.data.ImageDataset):
        """Tries again where timm 1.0.31 asks Pillow 13 to posterize to 0 bits, which is an error there."""

        def __getitem__(self, index: int) -> tuple:
            while True:
                with suppress(ValueError):
                    return super().__getitem__(index)

    dataset = Patient(str(path.with_suffix(".folder")))
    dataset.reader.samples = dataset.reader.samples * args.repeat
    loader = timm.data.create_loader(
        dataset, (3, args.size, args.size), args.batch, is_training=True, use_prefetcher=False,
        num_workers=CORES, interpolation="bicubic", mean=MEAN, std=STD, color_jitter=None,
        auto_augment=None if augment == "none" else augment, re_prob=0.0 if augment == "none" else 0.25,
        re_mode="pixel",
    )  # fmt: skip
    return lambda: sum(len(images) for images, _ in loader)


CONTESTANTS: dict[str, Callable[[Path, argparse.Namespace], Epoch]] = {  # timm first: it forks
    "timm, whole recipe": lambda path, args: timm_folder(path, args, RECIPE),
    "timm, crop and flip": lambda path, args: timm_folder(path, args, "none"),
    "stock FFCV, crop and flip": stock,
    "stock FFCV, crop, flip, normalise": lambda path, args: stock(path, args, normalise=True),
    "fastft, whole recipe": lambda path, args: ours(path, args, RECIPE),
    "fastft, crop and flip": lambda path, args: ours(path, args, "none"),
}
STOCK, OURS = "stock FFCV, crop and flip", "fastft, whole recipe"


# the files


def write_sample(folder: Path) -> Path:
    """The ImageNet sample as a `.beton`, and the very same JPEGs as a folder for timm beside it."""
    from beton_tools.sources import open_source
    from beton_tools.writer import WriteOptions, write_beton

    path = folder / "sample.beton"
    sample = os.environ.get("FASTFT_IMAGENET_SAMPLE", "../shared/data/imagenet-sample")
    write_beton(path, open_source(sample), WriteOptions(max_resolution=SIDE, lossless=False, workers=CORES))
    beton = Beton.open(path)
    for i, label in enumerate(beton.labels):
        target = path.with_suffix(".folder") / f"{label:04}" / f"{i:06}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(beton.read_bytes(i))
    return path


def write_imagenet_length(path: Path, num_bytes: int = 1024) -> Path:
    """A sparse file with the tables of 1,281,167 images and holes for their bytes."""
    rows = np.zeros(IMAGENET_LENGTH, SAMPLE_DTYPE)
    first = align_up(HEADER_DTYPE.itemsize + 2 * FIELD_DTYPE.itemsize + rows.nbytes, DEFAULT_PAGE_SIZE)
    pointers = first + num_bytes * np.arange(IMAGENET_LENGTH, dtype=np.uint64)
    end = align_up(int(pointers[-1]) + num_bytes, DEFAULT_PAGE_SIZE)
    rows["f0"]["width"], rows["f0"]["height"], rows["f0"]["data_ptr"] = SIDE, SIDE * 3 // 4, pointers
    rows["f1"] = np.arange(IMAGENET_LENGTH) % 1000
    header = np.array([(VERSION, 2, DEFAULT_PAGE_SIZE, IMAGENET_LENGTH, end)], HEADER_DTYPE)
    fields = np.zeros(2, FIELD_DTYPE)
    for field, name, kind in zip(fields, (b"image", b"label"), (IMAGE_TYPE, INT_TYPE), strict=True):
        field["name"][: len(name)], field["type_id"] = np.frombuffer(name, np.uint8), kind
    table = np.zeros(IMAGENET_LENGTH, ALLOC_DTYPE)
    table["sample_id"], table["ptr"], table["size"] = np.arange(IMAGENET_LENGTH), pointers, num_bytes
    with path.open("wb") as file:
        for part in (header, fields, rows):
            file.write(part.tobytes())
        file.seek(end)
        file.write(table.tobytes())
    return path


# the measurements


def throughput(path: Path, args: argparse.Namespace) -> dict[str, dict]:
    """Images per second and core of every loader: median, lowest and highest of the rounds."""
    epochs = {name: make(path, args) for name, make in CONTESTANTS.items()}
    rates: dict[str, list[float]] = {name: [] for name in epochs}
    for _ in range(args.rounds + 1):
        for name, epoch in epochs.items():
            began = time.perf_counter()
            images = epoch()
            rates[name].append(images / (time.perf_counter() - began) / CORES)
    return {name: summary(values[1:]) for name, values in rates.items()}


def summary(values: list[float]) -> dict:
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "n": len(values)}


def peak_mb() -> float:
    """Of this process (getrusage would give a child its parent's peak)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    return int(line.split()[1]) / 1024


def in_child(task: str, path: Path, args: argparse.Namespace) -> dict:
    """Run `task` in a fresh process; the median of `--rounds` of them, number by number."""
    repeat = "4" if task.startswith("epoch") else "1"  # of the sample: enough batches to fill every slot
    options = ["--file", str(path), "--batch", str(MEMORY_BATCH), "--repeat", repeat]
    command = [sys.executable, __file__, "--child", task, *options]
    answers = [
        json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
        for _ in range(args.rounds)
    ]
    return {key: summary([answer[key] for answer in answers]) for key in answers[0]}


def child(args: argparse.Namespace) -> dict[str, float]:
    """In the child: open the file, or iterate an epoch; seconds, and MB of resident memory at the peak."""
    for module in ("ffcv.loader", "fastft.data", "fastft.augment.draw"):
        importlib.import_module(module)
    task, name = args.child.split(":")
    before, began = peak_mb(), time.perf_counter()
    epoch = CONTESTANTS[name](args.file, args)
    if task == "epoch":
        epoch()
    return {
        "seconds": time.perf_counter() - began,
        "peak_mb": peak_mb(),
        "beyond_imports_mb": peak_mb() - before,
    }


def measure(args: argparse.Namespace) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        sample = write_sample(Path(folder))
        long = write_imagenet_length(Path(folder) / "long.beton")
        loaders = (OURS, STOCK, "stock FFCV, crop, flip, normalise")
        return {
            "setting": {**machine(), "size": args.size, "batch": args.batch, "rounds": args.rounds},
            "images_per_second_and_core": throughput(sample, args),
            f"epoch_at_batch_{MEMORY_BATCH}": {
                name: in_child(f"epoch:{name}", sample, args) for name in loaders
            },
            "open_imagenet_length": {name: in_child(f"open:{name}", long, args) for name in loaders},
        }


def machine() -> dict:
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": CORES,
        "python": sys.version.split()[0],
    }


def report(results: dict) -> Iterable[str]:
    rates = results["images_per_second_and_core"]
    base = rates[STOCK]["median"]
    yield f"{'images/s/core':34}{'median':>8}{'low':>8}{'high':>8}   x stock"
    for name, r in rates.items():
        yield f"{name:34}{r['median']:8.0f}{r['low']:8.0f}{r['high']:8.0f}{r['median'] / base:10.2f}"
    for title in list(results)[2:]:
        yield ""
        yield f"{title:34}{'seconds':>10}{'peak MB':>10}{'beyond imports MB':>20}"
        for name, r in results[title].items():
            numbers = [r[key]["median"] for key in ("seconds", "peak_mb", "beyond_imports_mb")]
            yield f"{name:34}{numbers[0]:10.2f}{numbers[1]:10.0f}{numbers[2]:20.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=224, help="side of the images made (default %(default)s)")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=2, help="times an epoch goes over the sample")
    parser.add_argument("--json", type=Path, help="write all numbers there")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(args)))
        return
    results = measure(args)
    print("\n".join(report(results)))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
