"""Loaders on the same JPEGs: throughput by threads, sizes and files, evaluation, cold files, start, memory, opening."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import psutil
import torch

from fastft.bench.contenders import ffcv
from fastft.bench.dataset import ORIGINAL, RESIZED
from fastft.bench.harness import Options
from fastft.bench.measure import (
    CPU,
    CPU_RATE,
    LOADER,
    ON_GPU,
    START,
    WALL,
    WALL_RATE,
    Figure,
    Plan,
    Row,
    Variant,
    Way,
    enter,
    enter_as,
    entered,
)
from fastft.bench.ours import ENTRIES as OUR_ENTRIES
from fastft.bench.task import Task, Work, peer_module
from fastft.bench.ways import MEMORY_LIMIT, cold, first, limit_refusal, limited, opening, remove_groups, warm
from fastft.machine.bench_result import OURS, Setting
from fastft.recipe.constants import IMAGENET_TRAIN_SIZE

SIZE, SIZES, BATCH, MEMORY_BATCH = 224, (128, 224, 384), 64, 256
ORDER_BYTES, ORDER_BLOCK_MIB, ORDER_BATCH = 3 * MEMORY_LIMIT, 16, 16
REPEAT = 2  # passes over the images in a round
MANY_SAMPLES, MANY_FILES = 20_000_000, 64
ABOUT = {
    Work.RECIPE: "Decode, bicubic random resized crop, flip, RandAugment m9 n2, normalise, random erasing.",
    Work.CROP: "Decode, random resized crop, flip, normalise.",
    Work.EVALUATION: "Decode, resize, centre crop, normalise.",
}


def loader_task(options: Options, work: str, files: str = RESIZED, **changes: Any) -> Task:
    batch = 4 if options.quick else min(BATCH, options.images)
    given = options.workspace.files(files, changes.get("threads", 1))
    made = Task(work, given, SIZE, batch, threads=1, repeat=1 if options.quick else REPEAT)
    return replace(made, **changes)


def common(task: Task, options: Options, files: str = RESIZED) -> Setting:
    return {"files": files, "size": task.size, "batch": task.batch, "images": task.repeat * options.images}


Threads = Callable[[Options], Iterable[int]]


def one_thread(options: Options) -> Iterable[int]:
    return [1]


def all_threads(options: Options) -> Iterable[int]:
    return [options.threads]


def thread_counts(options: Options) -> Iterable[int]:
    """Return 1, 2, 4, ..., the physical cores, and all hardware threads."""
    threads, physical = options.threads, psutil.cpu_count(logical=False) or 1
    doubling = (1 << k for k in range(threads.bit_length()) if 1 << k < threads)
    return sorted({1, *doubling, min(physical, threads), threads})


def beyond_cores(options: Options) -> Iterable[int]:
    """Return `thread_counts`, and in a full run twice as many threads as there are cores."""
    return [*thread_counts(options), *([] if options.quick else [2 * options.threads])]


def loaders(
    options: Options, work: str = Work.RECIPE, files: str = RESIZED, threads: Threads = one_thread, by_threads: bool = False,
    sizes: Sequence[int] = (SIZE,), way: Way = warm, only: Sequence[str] | None = None, also: str = "", **changes: Any,
) -> Iterator[Variant]:  # fmt: skip
    """Enter all loaders, for each number of threads and each size.

    by_threads: each case names its threads. also: the peer whose first loader for crops takes part, because it cannot do
    the recipe.
    """
    for count in threads(options):
        for size in sizes:
            task = loader_task(options, work, files, threads=count, size=size, **changes)
            chosen = entered(options, task, way, only=only)
            if also in options.peers:
                chosen += entered(options, replace(task, work=Work.CROP), way, only=[also])[1:2]
            shared, varied = common(task, options, files), Setting()
            if by_threads:
                varied["threads"] = count
            if threads is all_threads:
                shared = {"threads": count, **shared}
            if len(sizes) > 1:
                varied["size"] = shared.pop("size")
            yield Variant(chosen, varied, shared, min(count, options.threads), count > options.threads)


def raw(options: Options) -> Iterator[Variant]:
    """Crop and flip from a .beton of raw pixels, which is eight times as large."""
    task = loader_task(options, Work.CROP)
    for stored, path in (("JPEG", options.workspace.beton(RESIZED)), ("raw pixels", options.workspace.raw())):
        one = replace(task, files={**task.files, "beton": str(path)})
        setting: Setting = {"stored": stored, "file MB": round(path.stat().st_size / 1e6, 1)}
        yield Variant(entered(options, one, only=["ffcv"]), setting, common(task, options))


def starts(options: Options) -> Iterator[Variant]:
    """Start every loader with enough large batches to fill every buffer."""
    batch = 4 if options.quick else MEMORY_BATCH
    repeat = max(1, -(-6 * batch // options.images))
    return loaders(options, threads=thread_counts, by_threads=True, way=first, also="ffcv", batch=batch, repeat=repeat)


def open_long(options: Options) -> Iterator[Variant]:
    """Open a file with as many images as ImageNet, and files with 20 million samples."""
    few, many = (10_000, 64_000) if options.quick else (IMAGENET_TRAIN_SIZE, MANY_SAMPLES)
    for samples, parts, peers in ((few, 1, ["ffcv"]), (many, MANY_FILES, [])):
        files = {"beton": options.workspace.long(samples, parts), "warm": str(options.workspace.beton(RESIZED))}
        task = replace(loader_task(options, Work.CROP, repeat=1), files=files)
        chosen = [c for c in entered(options, task, opening, only=peers) if c.name in ("fastft", "stock FFCV")]
        yield Variant(chosen, {"samples": samples, "files": parts}, {"batch": task.batch}, options.threads)


def order(options: Options) -> Iterator[Variant]:
    """Ask the disk for an epoch over a file three times as large as the memory."""
    file_bytes, batch = (4_000_000, 4) if options.quick else (ORDER_BYTES, ORDER_BATCH)
    path = options.workspace.repeated(file_bytes, page_size=1 << 20)
    task = Task(Work.CROP, {"beton": str(path)}, SIZE, batch, options.threads)
    [ours] = OUR_ENTRIES
    blocks = enter(LOADER, ours, task, limited, order="blocks", block_mib=ORDER_BLOCK_MIB)
    chosen = [
        enter_as(blocks, OURS, f"data.order=blocks of {ORDER_BLOCK_MIB} MiB"),
        enter_as(enter(LOADER, ours, task, limited), f"{OURS}, random order"),
    ]
    if "ffcv" in options.peers:  # its order for files that do not fit into memory
        theirs = enter(peer_module("ffcv"), ffcv.STOCK, task, limited, order="QUASI_RANDOM", os_cache=False)
        chosen.append(replace(theirs, differences=("QUASI_RANDOM", f"keeps {2 * batch} pages in memory")))
    shared: Setting = {
        "file MB": round(path.stat().st_size / 1e6), "memory limit MB": round(MEMORY_LIMIT / 1e6), "page MiB": 1,
        "batch": batch,
    }  # fmt: skip
    try:
        yield Variant(chosen, {}, shared, options.threads)
    finally:
        remove_groups()


def to_gpu(options: Options) -> Iterator[Variant]:
    task = loader_task(options, Work.RECIPE, threads=options.threads, device="cuda")
    shared = {"threads": options.threads, "gpu": torch.cuda.get_device_name(), **common(task, options)}
    yield Variant(entered(options, task), {}, shared, options.threads)


def throughput(
    key: str, seconds: float, title: str, work: str, files: str, threads: Threads, *more: Figure, **shown: Any
) -> Plan:
    """Measure wall throughput for each number of threads, and in the one-thread rounds throughput per CPU second."""
    core = Figure(
        f"{key}.core", f"Loader, {title}, one thread", CPU_RATE, CPU, ABOUT[work], only={"threads": 1}, **shown
    )
    wall = Figure(key, f"Loader, {title}", WALL_RATE, WALL, ABOUT[work])
    return Plan(
        key, seconds, [core, wall, *more], partial(loaders, work=work, files=files, threads=threads, by_threads=True)
    )


BETWEEN = Figure(
    "loader.between", "Loader, whole recipe, time between batches", "ms", "p50_ms", better="lower", chapter=START, last=True,
    about="Median of the time from one batch to the next, and the 95th and 99th percentile and the longest. A batch that comes "
    "late makes a GPU wait, even if the loader is fast enough on average. The wait for the first batch is not included.",
    keep=("p95_ms", "p99_ms", "longest_ms"),
)  # fmt: skip
START_ABOUT = "The whole recipe (stock FFCV: crop and flip), in a new process. "
ORDER_ABOUT = "Crop and flip from a file three times as large as the memory. The epoch before is not counted."
OPEN_ABOUT = "Building a loader for files whose images are holes. Compiled code is loaded before."
ORIGINALS_TITLE = "loader, whole recipe, original files"
PLANS = (
    throughput(
        "loader.recipe", 450, "whole recipe", Work.RECIPE, RESIZED, beyond_cores, BETWEEN, headline=1,
        rows=[Row("loader, whole recipe, 500 px files", "timm")],
        processors=[
            ("whole recipe from 500 px files", "timm", "recipe_500"), ("500 px files", "DALI CPU", "recipe_500"),
        ],
    ),
    throughput(
        "loader.recipe-originals", 240, "whole recipe", Work.RECIPE, ORIGINAL, one_thread, headline=1,
        rows=[
            Row(ORIGINALS_TITLE, "timm"), Row("the same", "torchvision v2"), Row("the same", "simplejpeg + OpenCV"),
            Row("the same", "DALI CPU"),
        ],
        processors=[
            ("whole recipe from original files", "timm", "recipe_originals"), ("original files", "DALI CPU", "recipe_originals"),
        ],
        drawn=("Whole recipe, original ImageNet files", ("simplejpeg + OpenCV", "torchvision v2", "timm", "DALI CPU")),
    ),
    throughput(
        "loader.crop", 450, "crop and flip", Work.CROP, RESIZED, beyond_cores,
        rows=[Row("loader, crop and flip, 500 px files", "stock FFCV"), Row("the same", "SPDL")],
        processors=[("crop and flip from 500 px files", "stock FFCV", "crop_500")],
        drawn=("Crop and flip, 500 px files", ("stock FFCV", "torchvision v2", "timm", "SPDL")),
    ),
    throughput("loader.crop-originals", 240, "crop and flip", Work.CROP, ORIGINAL, one_thread),
    Plan("loader.sizes", 120, [
        Figure("loader.sizes", "Loader, whole recipe, by image size", CPU_RATE, CPU, ABOUT[Work.RECIPE]),
    ], partial(loaders, sizes=SIZES, repeat=1, only=("timm", "torchvision"))),
    Plan("loader.eval", 100, [
        Figure(
            "loader.eval", "Loader, evaluation", CPU_RATE, CPU, ABOUT[Work.EVALUATION], rows=[Row("loader, evaluation", "timm")]
        ),
    ], partial(loaders, work=Work.EVALUATION)),
    Plan("loader.raw", 60, [
        Figure("loader.raw", "Loader, crop and flip, JPEG or raw pixels", CPU_RATE, CPU, ABOUT[Work.CROP]),
    ], raw),
    Plan("loader.cold", 60, [
        Figure(
            "loader.cold", "Loader, files not in the page cache", WALL_RATE, WALL, keep=("read_mb",),
            about="The whole recipe (stock FFCV: crop and flip). Before each pass the files are dropped from the page cache. "
            "read_mb: read from the disk.",
            rows=[Row("loader, files not in the page cache", "stock FFCV")],
        ),
    ], partial(loaders, threads=all_threads, way=cold, only=("timm", "webdataset"), also="ffcv", repeat=1)),
    Plan("loader.first", 360, [
        Figure(
            "loader.first", "First batch", "s", "seconds", better="lower", chapter=START,
            about=f"{START_ABOUT}From a started Python to the first batch, imports included.",
            rows=[Row("time to the first batch", "timm", last=True)],
        ),
        Figure(
            "loader.memory", "Peak memory", "MB", "memory_mb", better="lower", chapter=START,
            about=f"{START_ABOUT}Memory that the system cannot drop, over all the loader's processes.",
            rows=[Row("peak memory, batch 256", "timm", last=True)],
        ),
    ], starts, fresh=True, most_rounds=3),
    Plan("loader.open", 60, [
        Figure(
            "loader.open", "Opening large files", "s", "seconds", OPEN_ABOUT, better="lower", chapter=START,
            rows=[Row("opening a file as long as ImageNet", "stock FFCV", {"files": 1})],
        ),
        Figure(
            "loader.open.memory", "Opening large files, memory", "MB", "memory_mb", OPEN_ABOUT, better="lower", chapter=START
        ),
    ], open_long, fresh=True, most_rounds=3),
    Plan("loader.order", 90, [
        Figure("loader.order", "Bytes read per epoch", "MB", "read_mb", ORDER_ABOUT, better="lower"),
        Figure("loader.order.requests", "Disk requests per epoch", "requests", "requests", ORDER_ABOUT, better="lower"),
    ], order, most_rounds=3, refusal=limit_refusal),
    Plan("loader.gpu", 120, [
        Figure("loader.gpu", "Loader to the GPU, whole recipe", WALL_RATE, WALL, ABOUT[Work.RECIPE], chapter=ON_GPU),
    ], to_gpu, needs_gpu=True),
)  # fmt: skip
