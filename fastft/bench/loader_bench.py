"""Loaders on the same JPEGs: throughput over threads, per core, cold, first batch, memory, opening time."""

from statistics import median
from typing import Any

import torch

from fastft.bench.dataset import IMAGENET_LENGTH, Workspace
from fastft.bench.harness import (
    Contender,
    Make,
    Rounds,
    alternate,
    alternate_fresh,
    log,
    measure,
    per_cpu_second,
    per_second,
    reported,
)
from fastft.bench.loader_arms import cold, first, opening, warm
from fastft.bench.options import Findings, Options

SIZE, BATCH, MEMORY_BATCH = 224, 64, 256
SIZES = (128, 160, 192, 224, 288, 336, 384)  # of schedules and towers
WHOLE, CROP = "Loader, whole recipe", "Loader, crop and flip"
CROP_ONLY: dict[str, Any] = {"policy": "none", "erase": 0.0}
FOLDER_PEERS = {"timm": "timm", "torchvision": "torchvision v2", "dali": "DALI CPU", "litdata": "LitData"}


def run(options: Options) -> Findings:
    files = options.workspace.sets[0]
    common = {
        "size": SIZE, "batch": 4 if options.quick else min(BATCH, options.images), "repeat": 1 if options.quick else 2
    }  # fmt: skip
    setting = {
        "files": files,
        "size": SIZE,
        "batch": common["batch"],
        "images": options.images * common["repeat"],
    }
    bench = LoaderBench(options, files, common, setting)
    for part in (
        bench.throughput, bench.by_size, bench.evaluation, bench.cold, bench.start, bench.opening, bench.to_gpu
    ):  # fmt: skip
        yield from part()


class LoaderBench:
    def __init__(self, options: Options, files: str, common: dict[str, Any], setting: dict[str, Any]) -> None:
        self.options, self.common, self.setting = options, common, setting
        self.workspace: Workspace = options.workspace
        self.files = files
        self.beton: dict[str, Any] = {"path": str(self.workspace.beton(files))}
        self.folder: dict[str, Any] = {"folder": str(self.workspace.jpegs(files))}

    def contender(
        self, name: str, maker: str, how: Make = warm, note: str = "", **arguments: Any
    ) -> Contender:
        return Contender(name, how, {"maker": maker, **self.common, **arguments}, note)

    def whole(self, threads: int, how: Make = warm, **more: Any) -> list[Contender]:
        """Contenders that can run the paper's recipe or something close to it."""
        given: dict[str, Any] = {"threads": threads, **more}
        shards = {"shards": self.workspace.shards(self.files, self.options.threads)}
        folder = self.folder | given
        return self.options.wanted({
            "fastft": [self.contender("fastft", "ours", how, **self.beton, **given)],
            "timm": [self.contender("timm", "timm", how, **folder)],
            "torchvision": [self.contender("torchvision v2", "torchvision", how, **folder)],
            "dali": [self.contender("DALI CPU", "dali", how, **folder)],
            "webdataset": [
                self.contender("WebDataset", "webdataset", how, "with timm's transform", **shards, **given)
            ],
            "litdata": [self.contender("LitData", "litdata", how, "with timm's transform", **folder)],
        })  # fmt: skip

    def crop(self, threads: int, how: Make = warm, **more: Any) -> list[Contender]:
        """Contenders with random resized crop and flip only, which is all that FFCV has."""
        given: dict[str, Any] = {"threads": threads, **more}
        ffcv = self.beton | given
        return self.options.wanted({
            "fastft": [self.contender("fastft", "ours", how, **CROP_ONLY, **self.beton, **given)],
            "ffcv": [
                self.contender("stock FFCV", "ffcv", how, "uint8, not normalised", **ffcv),
                self.contender("stock FFCV, normalised", "ffcv", how, "float32", normalise=True, **ffcv),
            ],
            "timm": [self.contender("timm", "timm", how, **CROP_ONLY, **self.folder, **given)],
        })  # fmt: skip

    def throughput(self) -> list[dict[str, Any]]:
        """Wall throughput for 1, 2, ... all threads; per core, from the rounds with one thread."""
        found: list[dict[str, Any]] = []
        per_core: list[dict[str, Any]] = []
        for name, contenders in ((WHOLE, self.whole), (CROP, self.crop)):
            for threads in self.options.thread_counts():
                rounds = alternate(contenders(threads), self.options.rounds, threads)
                setting = {"threads": threads, **self.setting}
                found.append(measure(name, rounds, "pass", per_second, "images/s", setting))
                if threads == 1:
                    role = {"role": "loader_per_core"} if name == WHOLE else {}
                    per_core.append(self._per_core(name, rounds, role))
        return [*per_core, *found]

    def _per_core(self, name: str, rounds: Rounds, role: dict[str, Any]) -> dict[str, Any]:
        return measure(
            f"{name}, per core", rounds, "pass", per_cpu_second, "images/s per core", self.setting, **role
        )

    def by_size(self) -> list[dict[str, Any]]:
        """The whole recipe at every size that a schedule or a tower asks for, one thread."""
        found = []
        for size in SIZES[:1] if self.options.quick else SIZES:
            given: dict[str, Any] = {"threads": 1, "repeat": 1, "size": size}
            contenders = self.options.wanted({
                "fastft": [self.contender("fastft", "ours", **self.beton, **given)],
                "timm": [self.contender("timm", "timm", **self.folder, **given)],
            })  # fmt: skip
            rounds = alternate(contenders, self.options.rounds, threads=1)
            setting = {**self.setting, "size": size, "images": self.options.images}
            found.append(
                measure(f"{WHOLE}, by size", rounds, "pass", per_cpu_second, "images/s per core", setting)
            )
        return found

    def evaluation(self) -> list[dict[str, Any]]:
        given: dict[str, Any] = {"threads": 1}
        contenders = self.options.wanted({
            "fastft": [self.contender("fastft", "ours_eval", **self.beton, **given)],
            "ffcv": [
                self.contender("stock FFCV", "ffcv", note="uint8, not normalised", train=False, **self.beton, **given)
            ],
            "timm": [self.contender("timm", "timm", **CROP_ONLY, train=False, **self.folder, **given)],
        })  # fmt: skip
        rounds = alternate(contenders, self.options.rounds, threads=1)
        return [self._per_core("Loader, evaluation", rounds, {"role": "eval_loader_per_core"})]

    def cold(self) -> list[dict[str, Any]]:
        """Throughput with the file dropped from the page cache before each pass."""
        threads = self.options.threads
        given: dict[str, Any] = {"threads": threads, "repeat": 1}
        beton: dict[str, Any] = {**self.beton, **given}
        folder: dict[str, Any] = {**self.folder, "files": f"{self.folder['folder']}/*/*", **given}
        pattern = self.workspace.shards(self.files, threads)
        shards: dict[str, Any] = {"shards": pattern, "files": pattern.partition("{")[0] + "*.tar", **given}
        contenders = self.options.wanted({
            "fastft": [self.contender("fastft", "ours", cold, **beton)],
            "ffcv": [self.contender("stock FFCV", "ffcv", cold, "crop and flip;", **beton)],
            "timm": [self.contender("timm", "timm", cold, **folder)],
            "torchvision": [self.contender("torchvision v2", "torchvision", cold, **folder)],
            "dali": [self.contender("DALI CPU", "dali", cold, **folder)],
            "webdataset": [self.contender("WebDataset", "webdataset", cold, "with timm's transform;", **shards)],
        })  # fmt: skip
        rounds = alternate(contenders, self.options.rounds, threads)
        for name, arms in rounds.trials.items():
            read = median(trial["read_mb"] for trial in arms["pass"])
            if name == "fastft" and read < 1:
                log.info(
                    "nothing was read from a disk: these files lie in memory, and no cold pass is reported"
                )
                return []
            rounds.notes[name] = f"{rounds.notes[name]} {read:.0f} MB read from the disk in a pass".strip()
        setting = {**self.setting, "images": self.options.images, "threads": threads, "page cache": "cold"}
        return [measure("Loader, whole recipe, cold", rounds, "pass", _by_own_clock, "images/s", setting)]

    def start(self) -> list[dict[str, Any]]:
        """Time to the first batch of 256, and memory over a pass that fills every slot; a new process per round."""
        threads = self.options.threads
        batch = 4 if self.options.quick else MEMORY_BATCH
        repeat = max(1, -(-6 * batch // self.options.images))  # enough batches to fill every slot
        shards = {"shards": self.workspace.shards(self.files, threads)}
        given: dict[str, Any] = {"threads": threads, "batch": batch, "repeat": repeat}
        contenders = self.options.wanted({
            "fastft": [self.contender("fastft", "ours", first, **self.beton, **given)],
            "ffcv": [
                self.contender("stock FFCV", "ffcv", first, "crop and flip, uint8", **self.beton, **given),
                self.contender(
                    "stock FFCV, normalised", "ffcv", first, "crop and flip", normalise=True, **self.beton, **given
                ),
            ],
            **{peer: [self.contender(name, peer, first, **self.folder, **given)] for peer, name in FOLDER_PEERS.items()},
            "webdataset": [self.contender("WebDataset", "webdataset", first, "with timm's transform", **shards, **given)],
        })  # fmt: skip
        rounds = alternate_fresh(contenders, self.options.rounds, threads)
        setting = {**self.setting, "batch": batch, "images": repeat * self.options.images, "threads": threads}
        figures = {
            "First batch": ("seconds", "s"),
            "First batch, with imports": ("with_imports", "s"),
            "Peak memory": ("peak_mb", "MB"),
            "Peak memory beyond imports": ("beyond_mb", "MB"),
        }
        # without worker processes
        alone = [name for name in rounds.trials if "FCV" in name or name == "fastft"]
        return [
            measure(name, rounds, "first", reported(key), unit, setting, better="lower",
                    only=alone if key == "beyond_mb" else None)
            for name, (key, unit) in figures.items()
        ]  # fmt: skip

    def opening(self) -> list[dict[str, Any]]:
        """Opening a file with as many samples as ImageNet."""
        if self.options.quick:
            return []
        path: dict[str, Any] = {
            "path": str(self.workspace.long()),
            "threads": self.options.threads,
            "repeat": 1,
        }
        contenders = self.options.wanted({
            "fastft": [self.contender("fastft", "ours", opening, **path)],
            "ffcv": [self.contender("stock FFCV", "ffcv", opening, **path)],
        })  # fmt: skip
        rounds = alternate_fresh(contenders, self.options.rounds, self.options.threads)
        setting = {"samples": IMAGENET_LENGTH, "batch": self.common["batch"]}
        figures = {"seconds": "s", "beyond_mb": "MB"}
        return [
            measure("Opening ImageNet's length", rounds, "open", reported(key), unit, setting, better="lower")
            for key, unit in figures.items()
        ]

    def to_gpu(self) -> list[dict[str, Any]]:
        """Throughput with augmentation on the GPU, if there is one."""
        if not torch.cuda.is_available():
            return []
        threads = self.options.threads
        contenders = self.options.wanted({
            "fastft": [self.contender("fastft", "ours", device="cuda", threads=threads, **self.beton)],
            "dali": [self.contender("DALI GPU", "dali", gpu=True, threads=threads, **self.folder)],
        })  # fmt: skip
        rounds = alternate(contenders, self.options.rounds, threads)
        setting = {"threads": threads, "gpu": torch.cuda.get_device_name(), **self.setting}
        return [measure("Loader to the GPU", rounds, "pass", per_second, "images/s", setting)]


def _by_own_clock(trial: dict[str, Any]) -> float:
    """Images/s without the time for dropping pages."""
    return trial["count"] / trial["seconds"]
