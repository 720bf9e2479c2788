"""Loaders on the same JPEGs: throughput by threads, sizes and files, evaluation, cold files, start, memory, opening."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from fastft.bench.contenders import cold, ffcv, limited, opening, ours
from fastft.bench.contenders.measuring import first
from fastft.bench.contenders.registry import contenders
from fastft.bench.contenders.task import CROP, EVALUATION, RECIPE, Loader, Task
from fastft.bench.dataset import ORIGINAL, RESIZED
from fastft.bench.harness import (
    Contender,
    Findings,
    Options,
    Planned,
    alternate,
    alternate_fresh,
    case,
    per_cpu_second,
    per_second,
    reported,
)  # fmt: skip
from fastft.machine.bench_result import OURS, Case, Measure, Setting
from fastft.recipe.constants import IMAGENET_TRAIN_SIZE

SIZE, SIZES, BATCH, MEMORY_BATCH = 224, (128, 224, 384), 64, 256
ORDER_BYTES, ORDER_MEMORY, ORDER_BLOCK_MIB, ORDER_BATCH = 300_000_000, 100_000_000, 16, 16
REPEAT = 2  # passes over the images in a round
MANY_SAMPLES, MANY_FILES = 20_000_000, 64
WORDS = {
    RECIPE: (
        "whole recipe",
        "Decode, bicubic random resized crop, flip, RandAugment m9 n2, normalise, random erasing.",
    ),
    CROP: ("crop and flip", "Decode, random resized crop, flip, normalise."),
    EVALUATION: ("evaluation", "Decode, resize, centre crop, normalise."),
}
PER_CPU_SECOND = "images per CPU second"


def task(options: Options, work: str, files: str = RESIZED, **changes: Any) -> Task:
    batch = 4 if options.quick else min(BATCH, options.images)
    threads = changes.get("threads", 1)
    given = options.workspace.files(files, threads)
    made = Task(work, given, SIZE, batch, threads, 1 if options.quick else REPEAT)
    return replace(made, **changes)


def setting(of: Task, files: str, options: Options) -> dict[str, Any]:
    return {
        "files": files,
        "size": of.size,
        "batch": of.batch,
        "images": of.repeat * options.images,
        "rounds": options.rounds,
    }


def thread_counts(threads: int) -> list[int]:
    """Return 1, 2, 4, ... and all."""
    return sorted({1, threads, *(1 << k for k in range(threads.bit_length()) if 1 << k < threads)})


def throughput(options: Options, work: str, files: str, key: str, counts: Sequence[int]) -> Findings:
    """Measure wall throughput for each number of threads, and in the one-thread rounds throughput per CPU second."""
    title, about = WORDS[work]
    cases: list[Case] = []
    for threads in counts:
        asked = task(options, work, files, threads=threads)
        rounds = alternate(contenders(options, asked), options.rounds, threads)
        given = setting(asked, files, options)
        if threads == 1:
            core = [case(rounds, "pass", per_cpu_second, {})]
            yield Measure(
                key=f"{key}.core", bench="loader", title=f"Loader, {title}, one thread", unit=PER_CPU_SECOND, about=about,
                cases=core, setting=given,
            )  # fmt: skip
        cases.append(case(rounds, "pass", per_second, {"threads": threads}))
    yield Measure(
        key=key, bench="loader", title=f"Loader, {title}", unit="images/s", about=about, cases=cases, setting=given
    )  # fmt: skip


def recipe(options: Options) -> Findings:
    yield from throughput(options, RECIPE, RESIZED, "loader.recipe", thread_counts(options.threads))


def crop(options: Options) -> Findings:
    yield from throughput(options, CROP, RESIZED, "loader.crop", thread_counts(options.threads))


def recipe_originals(options: Options) -> Findings:
    yield from throughput(options, RECIPE, ORIGINAL, "loader.recipe-originals", [1])


def crop_originals(options: Options) -> Findings:
    yield from throughput(options, CROP, ORIGINAL, "loader.crop-originals", [1])


def sizes(options: Options) -> Findings:
    """Run the whole recipe at several output sizes."""
    cases = []
    for size in SIZES:
        asked = task(options, RECIPE, size=size, repeat=1)
        chosen = contenders(options, asked, only=("ours", "timm", "torchvision"))
        rounds = alternate(chosen, options.rounds, 1)
        cases.append(case(rounds, "pass", per_cpu_second, {"size": size}))
    given = setting(asked, RESIZED, options)
    del given["size"]
    yield Measure(
        key="loader.sizes", bench="loader", title="Loader, whole recipe, by image size", unit=PER_CPU_SECOND,
        about=WORDS[RECIPE][1], cases=cases, setting=given,
    )  # fmt: skip


def evaluation(options: Options) -> Findings:
    asked = task(options, EVALUATION)
    rounds = alternate(contenders(options, asked), options.rounds, 1)
    yield Measure(
        key="loader.eval", bench="loader", title="Loader, evaluation", unit=PER_CPU_SECOND, about=WORDS[EVALUATION][1],
        cases=[case(rounds, "pass", per_cpu_second, {})], setting=setting(asked, RESIZED, options),
    )  # fmt: skip


def raw(options: Options) -> Findings:
    """Crop and flip from a .beton of raw pixels, which is eight times as large."""
    asked = task(options, CROP)
    cases = []
    for stored, path in (("JPEG", options.workspace.beton(RESIZED)), ("raw pixels", options.workspace.raw())):
        one = replace(asked, files={**asked.files, "beton": str(path)})
        rounds = alternate(contenders(options, one, only=("ours", "ffcv")), options.rounds, 1)
        megabytes = round(path.stat().st_size / 1e6, 1)
        cases.append(case(rounds, "pass", per_cpu_second, {"stored": stored, "file MB": megabytes}))
    yield Measure(
        key="loader.raw", bench="loader", title="Loader, crop and flip, JPEG or raw pixels", unit=PER_CPU_SECOND,
        about=WORDS[CROP][1], cases=cases, setting=setting(asked, RESIZED, options),
    )  # fmt: skip


def cold_files(options: Options) -> Findings:
    """Begin every pass with none of the files in the page cache."""
    asked = task(options, RECIPE, threads=options.threads, repeat=1)
    chosen = contenders(options, asked, cold.cold, only=("ours", "timm", "webdataset"))
    crops = contenders(options, replace(asked, work=CROP), cold.cold, only=("ffcv",))
    rounds = alternate([*chosen, *crops[:1]], options.rounds, options.threads)
    yield Measure(
        key="loader.cold", bench="loader", title="Loader, files not in the page cache", unit="images/s",
        about="The whole recipe (stock FFCV: crop and flip). Before each pass the files are dropped from the page cache. "
        "read_mb: read from the disk.",
        cases=[case(rounds, "pass", lambda t: t["count"] / t["seconds"], {}, keep=("read_mb",))],
        setting={"threads": options.threads, **setting(asked, RESIZED, options)},
    )  # fmt: skip


def start(options: Options) -> Findings:
    """Measure time to the first batch and peak memory, in a new process per round."""
    batch = 4 if options.quick else MEMORY_BATCH
    repeat = max(1, -(-6 * batch // options.images))  # gives enough batches to fill every buffer
    asked = task(options, RECIPE, threads=options.threads, batch=batch, repeat=repeat)
    chosen = contenders(options, asked, first)
    stock = contenders(options, replace(asked, work=CROP), first, only=("ffcv",))[:1]
    rounds = alternate_fresh([*chosen, *stock], min(options.rounds, 3), options.threads)
    given = {"threads": options.threads, **setting(asked, RESIZED, options), "rounds": min(options.rounds, 3)}
    about = "The whole recipe (stock FFCV: crop and flip), in a new process. "
    for key, figure, title, unit, what in (
        ("loader.first", "seconds", "First batch", "s", "From a started Python to the first batch, imports included."),
        ("loader.memory", "memory_mb", "Peak memory", "MB", "Memory that the system cannot drop, over all "
            "processes of a loader."),
    ):  # fmt: skip
        yield Measure(
            key=key, bench="loader", title=title, unit=unit, about=about + what, better="lower", setting=given,
            cases=[case(rounds, "first", reported(figure), {})],
        )  # fmt: skip


def open_long(options: Options) -> Findings:
    """Open a file with as many images as ImageNet, and files with 20 million samples."""
    cases: dict[str, list[Case]] = {"seconds": [], "memory_mb": []}
    small = options.quick
    for samples, parts, peers in (
        (10_000 if small else IMAGENET_TRAIN_SIZE, 1, ("ours", "ffcv")),
        (64_000 if small else MANY_SAMPLES, MANY_FILES, ("ours",)),
    ):  # fmt: skip
        files = {"beton": options.workspace.long(samples, parts), "warm": str(options.workspace.beton(RESIZED))}
        asked = replace(task(options, CROP, repeat=1), files=files)
        chosen = [
            c for c in contenders(options, asked, opening.opening, only=peers) if c.name in ("fastft", "stock FFCV")
        ]
        rounds = alternate_fresh(chosen, min(options.rounds, 3), options.threads)
        for figure, found in cases.items():
            found.append(case(rounds, "open", reported(figure), {"samples": samples, "files": parts}))
    for key, figure, title, unit in (
        ("loader.open", "seconds", "Opening large files", "s"),
        ("loader.open.memory", "memory_mb", "Opening large files, memory", "MB"),
    ):  # fmt: skip
        yield Measure(
            key=key, bench="loader", title=title, unit=unit, better="lower", cases=cases[figure],
            about="Building a loader for files whose images are holes. Compiled code is loaded before.",
            setting={"batch": asked.batch},
        )  # fmt: skip


def order(options: Options) -> Findings:
    """Measure what the disk is asked for in an epoch over a file three times as large as the memory."""
    if not limited.is_available():
        yield "loader.order was left out. It limits memory with control groups of version 1, which only root can create."
        return
    file_bytes, batch = (4_000_000, 4) if options.quick else (ORDER_BYTES, ORDER_BATCH)
    path = options.workspace.repeated(file_bytes, page_size=1 << 20)
    asked = Task(CROP, {"beton": str(path)}, SIZE, batch, options.threads)
    blocks = {"order": "blocks", "block_mib": ORDER_BLOCK_MIB}
    quasi_random = {"order": "QUASI_RANDOM", "os_cache": False}  # FFCV's order for files that do not fit into memory
    rows: tuple[tuple[str, str, Loader, dict[str, Any], tuple[str, ...]], ...] = (
        (OURS, "ours", ours.LOADERS[0], blocks, (f"data.order=blocks of {ORDER_BLOCK_MIB} MiB",)),
        ("fastft, random order", "ours", ours.LOADERS[0], {}, ()),
        ("stock FFCV", "ffcv", ffcv.LOADERS[0], quasi_random, ("QUASI_RANDOM", f"keeps {2 * batch} pages in memory")),
    )
    chosen = []
    for name, file, loader, more, differences in rows:
        if file == "ours" or file in options.peers:
            given = {"file": file, "name": loader.name, "task": asked.as_dict(), "options": more, "limit": ORDER_MEMORY}
            chosen.append(Contender(name, limited.limited, given, differences))
    rounds = alternate(chosen, min(options.rounds, 3), options.threads)
    limited.remove_groups()
    setting: Setting = {
        "file MB": round(path.stat().st_size / 1e6), "memory limit MB": round(ORDER_MEMORY / 1e6), "page MiB": 1,
        "batch": batch, "rounds": min(options.rounds, 3),
    }  # fmt: skip
    for key, figure, title, unit in (
        ("loader.order", "read_mb", "Bytes read per epoch", "MB"),
        ("loader.order.requests", "requests", "Disk requests per epoch", "requests"),
    ):  # fmt: skip
        yield Measure(
            key=key, bench="loader", title=title, unit=unit, better="lower", setting=setting,
            about="Crop and flip from a file three times as large as the memory. The epoch before is not counted.",
            cases=[case(rounds, "pass", reported(figure), {})],
        )  # fmt: skip


def to_gpu(options: Options) -> Findings:
    """Measure throughput with augmentation on the GPU."""
    asked = task(options, RECIPE, threads=options.threads, device="cuda")
    rounds = alternate(contenders(options, asked), options.rounds, options.threads)
    yield Measure(
        key="loader.gpu", bench="loader", title="Loader to the GPU, whole recipe", unit="images/s", about=WORDS[RECIPE][1],
        cases=[case(rounds, "pass", per_second, {})],
        setting={"threads": options.threads, "gpu": torch.cuda.get_device_name(), **setting(asked, RESIZED, options)},
    )  # fmt: skip


MEASURES = (
    Planned("loader.recipe", recipe, 340),
    Planned("loader.recipe-originals", recipe_originals, 240),
    Planned("loader.crop", crop, 340),
    Planned("loader.crop-originals", crop_originals, 240),
    Planned("loader.sizes", sizes, 120),
    Planned("loader.eval", evaluation, 100),
    Planned("loader.raw", raw, 60),
    Planned("loader.cold", cold_files, 60),
    Planned("loader.first", start, 180),
    Planned("loader.open", open_long, 60),
    Planned("loader.order", order, 90),
    Planned("loader.gpu", to_gpu, 120, needs_gpu=True),
)
