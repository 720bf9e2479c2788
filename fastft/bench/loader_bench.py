"""Loaders on the same JPEGs: throughput over threads and per core, augmentation on a GPU."""

from collections.abc import Sequence
from typing import Any

import torch

from fastft.bench.dataset import ORIGINAL, RESIZED
from fastft.bench.harness import Contender, Findings, Options, alternate, measure, per_cpu_second, per_second
from fastft.bench.loaders import warm

SIZE, BATCH = 224, 64
WHOLE, CROP = "Loader, whole recipe", "Loader, crop and flip"
CROP_ONLY: dict[str, Any] = {"policy": "none", "erase": 0.0}


def run(options: Options) -> Findings:
    bench = LoaderBench(options)
    yield from bench.throughput(sorted({1, options.threads}))
    yield from LoaderBench(options, ORIGINAL).throughput([1])
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
        self.sources = {"ours": beton, "ffcv": beton}
        self.folder = folder

    def contender(self, name: str, maker: str, note: str = "", **arguments: Any) -> Contender:
        source = self.sources.get(maker, self.folder)
        return Contender(name, warm, {"maker": maker, **self.common, **source, **arguments}, note)

    def whole(self, threads: int) -> dict[str, list[Contender]]:
        """Contenders that can run the paper's recipe or something close to it, by library."""
        names = {"fastft": ("fastft", "ours"), "timm": ("timm", "timm"), "dali": ("DALI CPU", "dali")}
        return {library: [self.contender(*name, threads=threads)] for library, name in names.items()}

    def crop(self, threads: int) -> dict[str, list[Contender]]:
        """Contenders with random resized crop and flip only, which is all that FFCV itself has."""
        stock = self.contender("stock FFCV", "ffcv", "uint8, not normalised", threads=threads)
        normalised = self.contender("stock FFCV, normalised", "ffcv", "float32", normalise=True, threads=threads)
        given = {**CROP_ONLY, "threads": threads}
        return {
            "fastft": [self.contender("fastft", "ours", **given)],
            "ffcv": [stock, normalised],
            "timm": [self.contender("timm", "timm", **given)],
        }

    def throughput(self, thread_counts: Sequence[int]) -> Findings:
        """Wall throughput for each number of threads; per core, from the rounds with one thread."""
        for name, contenders in ((WHOLE, self.whole), (CROP, self.crop)):
            for threads in thread_counts:
                wanted = self.options.wanted(contenders(threads))
                rounds = alternate(wanted, self.options.rounds, threads)
                if threads == 1:
                    per_core = "images/s per core"
                    yield measure(f"{name}, per core", rounds, "pass", per_cpu_second, per_core, self.setting)
                setting = {"threads": threads, **self.setting}
                yield measure(name, rounds, "pass", per_second, "images/s", setting)

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
