"""Loaders on the same JPEGs: throughput over threads and per core, evaluation, first batch and memory, augmentation on a GPU."""

from collections.abc import Sequence
from typing import Any

import torch

from fastft.bench import harness
from fastft.bench.dataset import ORIGINAL, RESIZED
from fastft.bench.harness import Contender, Findings, Options, alternate, measure, per_cpu_second, per_second
from fastft.bench.loaders import first, warm

SIZE, BATCH, MEMORY_BATCH = 224, 64, 256
WHOLE, CROP = "Loader, whole recipe", "Loader, crop and flip"
CROP_ONLY: dict[str, Any] = {"policy": "none", "erase": 0.0}
ALONE = ("fastft", "stock FFCV", "stock FFCV, normalised")


def run(options: Options) -> Findings:
    bench = LoaderBench(options)
    yield from bench.throughput(options.thread_counts())
    yield from LoaderBench(options, ORIGINAL).throughput([1])
    yield from bench.evaluation()
    yield from bench.start()
    if torch.cuda.is_available():
        yield from bench.to_gpu()


class LoaderBench:
    def __init__(self, options: Options, files: str = RESIZED) -> None:
        self.options, workspace = options, options.workspace
        batch = 4 if options.quick else min(BATCH, options.images)
        self.common = {"size": SIZE, "batch": batch, "repeat": 1 if options.quick else 2}
        images = options.images * self.common["repeat"]
        self.setting: dict[str, Any] = {"files": files, "size": SIZE, "batch": batch, "images": images}
        beton, folder = {"path": str(workspace.beton(files))}, {"folder": str(workspace.jpegs(files))}
        self.sources = {"ours": beton, "ours_eval": beton, "ffcv": beton}
        self.folder = folder

    def contender(self, name: str, maker: str, how: harness.Make = warm, note: str = "", **arguments: Any) -> Contender:
        source = self.sources.get(maker, self.folder)
        return Contender(name, how, {"maker": maker, **self.common, **source, **arguments}, note)

    def whole(self, how: harness.Make = warm, **more: Any) -> dict[str, list[Contender]]:
        """Contenders that can run the paper's recipe or something close to it, by library."""
        names = {"ours": "fastft", "timm": "timm", "torchvision": "torchvision v2", "dali": "DALI CPU"}
        return {
            "fastft" if maker == "ours" else maker: [self.contender(name, maker, how, **more)]
            for maker, name in names.items()
        }

    def stock(self, how: harness.Make = warm, **more: Any) -> list[Contender]:
        return [
            self.contender("stock FFCV", "ffcv", how, "crop and flip, uint8, not normalised", **more),
            self.contender("stock FFCV, normalised", "ffcv", how, "crop and flip, float32", normalise=True, **more),
        ]

    def crop(self, **more: Any) -> dict[str, list[Contender]]:
        """Contenders with random resized crop and flip only, which is all that FFCV itself has."""
        notes = {"crop": "uint8, not normalised", "none": "float32"}
        operations = [
            self.contender(f"FFCV, fastft's operations, {note}", "ffcv", policy=policy, **more)
            for policy, note in notes.items()
        ]
        return {
            "fastft": [self.contender("fastft", "ours", **CROP_ONLY, **more)],
            "ffcv": [*self.stock(**more), *operations],
            "timm": [self.contender("timm", "timm", **CROP_ONLY, **more)],
        }

    def throughput(self, thread_counts: Sequence[int]) -> Findings:
        """Wall throughput for each number of threads; per core, from the rounds with one thread."""
        for name, contenders in ((WHOLE, self.whole), (CROP, self.crop)):
            for threads in thread_counts:
                wanted = self.options.wanted(contenders(threads=threads))
                rounds = alternate(wanted, self.options.rounds, threads)
                if threads == 1:
                    is_priced = (name, self.setting["files"]) == (WHOLE, RESIZED)
                    role: dict[str, Any] = {"role": "loader_per_core"} if is_priced else {}
                    per_core = "images/s per core"
                    yield measure(f"{name}, per core", rounds, "pass", per_cpu_second, per_core, self.setting, **role)
                setting = {"threads": threads, **self.setting}
                yield measure(name, rounds, "pass", per_second, "images/s", setting)

    def evaluation(self) -> Findings:
        given: dict[str, Any] = {"threads": 1, "train": False}
        contenders = self.options.wanted({
            "fastft": [self.contender("fastft", "ours_eval", threads=1)],
            "ffcv": self.stock(**given)[:1],
            "timm": [self.contender("timm", "timm", **CROP_ONLY, **given)],
        })  # fmt: skip
        rounds = alternate(contenders, self.options.rounds, threads=1)
        yield measure(
            "Loader, evaluation, per core", rounds, "pass", per_cpu_second, "images/s per core", self.setting,
            role="eval_loader_per_core",
        )  # fmt: skip

    def start(self) -> Findings:
        """Time to the first batch of 256, and memory over a pass that fills every slot; a new process per round.

        Memory only of those without worker processes.
        """
        threads = self.options.threads
        batch = 4 if self.options.quick else MEMORY_BATCH
        repeat = max(1, -(-6 * batch // self.options.images))  # enough batches to fill every slot
        given: dict[str, Any] = {"threads": threads, "batch": batch, "repeat": repeat}
        contenders = self.whole(first, **given) | {"ffcv": self.stock(first, **given)}
        rounds = harness.alternate_fresh(self.options.wanted(contenders), self.options.rounds, threads)
        setting = {**self.setting, "batch": batch, "images": repeat * self.options.images, "threads": threads}
        figures = {"seconds": ("First batch, with imports", "s", None), "peak_mb": ("Peak memory", "MB", ALONE)}
        for key, (name, unit, only) in figures.items():
            yield measure(name, rounds, "first", harness.reported(key), unit, setting, better="lower", only=only)

    def to_gpu(self) -> Findings:
        """Throughput with augmentation on the GPU."""
        given: dict[str, Any] = {"threads": self.options.threads}
        contenders = self.options.wanted({
            "fastft": [self.contender("fastft", "ours", device="cuda", **given)],
            "dali": [self.contender("DALI GPU", "dali", gpu=True, **given)],
        })  # fmt: skip
        rounds = alternate(contenders, self.options.rounds, self.options.threads)
        setting = {**given, "gpu": torch.cuda.get_device_name(), **self.setting}
        yield measure("Loader to the GPU", rounds, "pass", per_second, "images/s", setting)
