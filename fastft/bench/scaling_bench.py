"""The training loader on more cores: threads measured here, then a model of 16 to 128 cores and of a host with 8 H100.

The model (`fastft.bench.scaling`) gets the CPU time of every image, the time between batches and the bandwidth of the memory,
measured with one thread, and the bytes that `fastft.bench.image_traffic` counts. Its figures for this machine's threads stand
beside the measured ones.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np

from fastft.bench.child import Arm
from fastft.bench.dataset import IMAGENET_LENGTH
from fastft.bench.harness import Contender, Rounds, alternate, measure, per_second, summary
from fastft.bench.image_traffic import (
    FLOAT_BYTES,
    ImageShape,
    Transfer,
    all_bytes,
    cpu_augmented,
    gpu_augmented,
    image_shape,
    stream_bytes,
)
from fastft.bench.loader_arms import AUGMENT, ERASE, warm
from fastft.bench.options import BenchResult, Options
from fastft.bench.scaling import Host, LoaderWork, bandwidth_limit, cores_limit, simulate
from fastft.recipe import recipe_from_dict

SIZE, BATCH = 224, 64
WHOLE, CROP, DECODE = "whole recipe", "crop and flip", "decode only, the GPU augments"
TOGETHER = "cores and memory together"  # of `host_limits`
POLICIES = {WHOLE: (AUGMENT, ERASE), CROP: ("none", 0.0)}
COPY_BYTES = 128 << 20  # of each array of the bandwidth measurement: beyond every cache
COPIES = 4

# modelled hosts -------------------------------------------------------------------------------------------------------

CORES = (16, 32, 64, 96, 128)
GPUS, MICRO_BATCH = 8, 256  # a batch of 2048 on eight GPUs, a process for each
# 16 channels of DDR4-3200 for 128 cores: two EPYC 7763 (AMD's data sheet: 204.8 GB/s per socket of 64 cores)
PEAK_PER_CORE = 409.6e9 / 128
MEMORY_SHARE = 0.8  # of a peak that is sustained; assumed, about what STREAM reaches


@dataclass(frozen=True)
class GpuHost:
    """A machine with eight GPUs; rates in bytes/s, from data sheets."""

    name: str
    cores: int  # physical
    memory_peak: float
    memory_bytes: float
    link_peak: float  # of each GPU, to it
    disk: float

    @property
    def memory(self) -> float:
        return MEMORY_SHARE * self.memory_peak

    @property
    def link(self) -> float:
        """Bandwidth to all GPUs together, in bytes/s."""
        return MEMORY_SHARE * GPUS * self.link_peak


# EC2 p5.48xlarge: two 48-core EPYC of the third generation (8 channels of DDR4-3200 each; their PCIe is 4.0, x16 for each
# GPU), 2 TiB, EBS at 80 Gbit/s
H100_HOST = GpuHost("p5.48xlarge, 8 x H100", 96, 409.6e9, 2 * 2**40, 32e9, 10e9)


# measurement ----------------------------------------------------------------------------------------------------------


def run(options: Options) -> BenchResult:
    batch = 4 if options.quick else min(BATCH, options.images)
    bandwidth = _bandwidth(options)
    found = [bandwidth.measure(), *_demand()]
    for files in options.workspace.sets:
        path = options.workspace.beton(files)
        for recipe, (policy, erase) in POLICIES.items():
            given = {
                "path": str(path), "size": SIZE, "batch": batch, "repeat": 1 if options.quick else 2,
                "policy": policy, "erase": erase,
            }  # fmt: skip
            setting = {"files": files, "recipe": recipe}
            inputs = alternate([Contender("fastft", loader_work, given)], options.rounds, threads=1)
            measured = MeasuredLoader(inputs, image_shape(path, policy, SIZE))
            found.append(measured.parts(setting))
            found += _check(options, given, setting, measured, bandwidth)
            found += _more_cores(measured, bandwidth, setting)
            if recipe == WHOLE:
                found += measured.traffic(setting)
                found += _more_cores(measured, bandwidth, {**setting, "recipe": DECODE})
                found += _gpu_host(measured, bandwidth, files)
    names = list(dict.fromkeys(m["name"] for m in found))
    return BenchResult(sorted(found, key=lambda m: names.index(m["name"])))


@dataclass(frozen=True)
class Bandwidth:
    """Bytes/s that copies move, by threads."""

    by_threads: dict[int, list[float]]

    @property
    def core(self) -> float:
        return median(self.by_threads[1])

    def of(self, threads: int) -> float:
        return max(median(found) for n, found in self.by_threads.items() if n <= threads)

    def measure(self) -> dict[str, Any]:
        rows = [
            summary(f"{n} thread{'s' * (n > 1)}", [v / 1e9 for v in found])
            for n, found in self.by_threads.items()
        ]
        return {"name": "Memory bandwidth of copies", "unit": "GB/s", "setting": {}, "contenders": rows}


def _bandwidth(options: Options) -> Bandwidth:
    found = {}
    for threads in options.thread_counts():
        contender = Contender("copies", copies, {"threads": threads, "quick": options.quick})
        trials = alternate([contender], options.rounds, threads).trials["copies"]["copy"]
        found[threads] = [trial["bandwidth"] for trial in trials]
    return Bandwidth(found)


@dataclass(frozen=True)
class MeasuredLoader:
    """Rounds of `loader_work`, and the shape of the images."""

    rounds: Rounds
    shape: ImageShape

    def _median(self, key: str) -> float:
        return median(trial[key] for trial in self.rounds.trials["fastft"]["pass"])

    def work(self, transfers: list[Transfer], *, augment: bool = True, cached: bool = True) -> LoaderWork:
        """augment: whether the CPU does; cached: whether scratch stays in the cores' caches."""
        keys = ("read", "decode", "augment") if augment else ("read", "decode")
        trials = self.rounds.trials["fastft"]["pass"]
        spread = np.median(
            [np.sum([trial[f"each_{key}"] for key in keys], axis=0) for trial in trials], axis=0
        )
        mean = sum(map(self._median, keys))
        num_bytes = stream_bytes(transfers) if cached else all_bytes(transfers)
        return LoaderWork(spread * mean / spread.mean(), self._median("batch_seconds"), num_bytes)

    def parts(self, setting: dict[str, Any]) -> dict[str, Any]:
        """Measured inputs of the model."""
        trials = self.rounds.trials["fastft"]["pass"]
        rows = [summary(key, [1e3 * trial[key] for trial in trials]) for key in ("read", "decode", "augment")]
        rows.append(summary("between batches, per batch", [1e3 * trial["batch_seconds"] for trial in trials]))
        return {
            "name": "Time of an image, one thread", "unit": "ms per image", "better": "lower", "setting": setting,
            "contenders": rows,
        }  # fmt: skip

    def traffic(self, setting: dict[str, Any]) -> list[dict[str, Any]]:
        """Bytes per image by step, if the CPU augments and if the GPU does."""
        kinds = {WHOLE: cpu_augmented(self.shape), DECODE: gpu_augmented(self.shape)}
        return [{
            "name": "Bytes of an image", "unit": "kB per image", "better": "lower", "modelled": True,
            "setting": {**setting, "recipe": kind},
            "contenders": [
                summary(f"{t.what} ({'memory' if t.stream else 'cache'})", [t.bytes / 1e3]) for t in transfers
            ],
        } for kind, transfers in kinds.items()]  # fmt: skip


def _check(
    options: Options,
    given: dict[str, Any],
    setting: dict[str, Any],
    measured: MeasuredLoader,
    bandwidth: Bandwidth,
) -> list[dict[str, Any]]:
    """Threads of this machine: measured, and what the model says."""
    work = measured.work(cpu_augmented(measured.shape, consumed=False))
    found = []
    for threads in options.thread_counts():
        rounds = alternate(
            [Contender("fastft", warm, {"maker": "ours", "threads": threads, **given})],
            options.rounds,
            threads,
        )
        row = measure(
            "Loader on this machine", rounds, "pass", per_second, "images/s",
            {**setting, "batch": given["batch"], "threads": threads}, rename={"fastft": "measured"},
        )  # fmt: skip
        host = Host(threads, bandwidth.of(threads), bandwidth.core)
        predicted = simulate(work, host, batch=given["batch"])
        error = predicted / row["contenders"][0]["median"] - 1
        model = summary("model", [predicted], note=f"{error:+.1%}", modelled=True)
        found.append({**row, "contenders": [*row["contenders"], model]})
    return found


# model ----------------------------------------------------------------------------------------------------------------


def share_of_host(cores: int, core_bandwidth: float) -> Host:
    """`cores` cores with their share of the memory's bandwidth."""
    bandwidth = MEMORY_SHARE * PEAK_PER_CORE * cores
    return Host(cores, bandwidth, min(core_bandwidth, bandwidth))


def _works(measured: MeasuredLoader, kind: str) -> tuple[LoaderWork, LoaderWork]:
    """The work if scratch stays in cache, and if it does not."""
    augment = kind != DECODE
    transfers = cpu_augmented(measured.shape) if augment else gpu_augmented(measured.shape)
    cached, spilled = (measured.work(transfers, augment=augment, cached=c) for c in (True, False))
    return cached, spilled


def _more_cores(
    measured: MeasuredLoader, bandwidth: Bandwidth, setting: dict[str, Any]
) -> list[dict[str, Any]]:
    """Images/s of 16 to 128 cores in eight processes, and what cores and memory alone would allow."""
    cached, spilled = _works(measured, setting["recipe"])
    found = []
    for cores in CORES:
        host = share_of_host(cores, bandwidth.core)
        figures = {
            "simulated": simulate(cached, host, batch=MICRO_BATCH, processes=GPUS),
            "simulated, scratch not in cache": simulate(spilled, host, batch=MICRO_BATCH, processes=GPUS),
            "simulated, one process": simulate(cached, host, batch=MICRO_BATCH),
            "cores alone": cores_limit(cached, cores),
            "memory alone": bandwidth_limit(cached, host),
        }
        found.append({
            "name": "Loader on more cores", "unit": "images/s", "modelled": True,
            "setting": {**setting, "cores": cores, "GB/s": round(host.bandwidth / 1e9)},
            "contenders": [summary(name, [rate]) for name, rate in figures.items()],
        })  # fmt: skip
    return found


def host_limits(
    measured: MeasuredLoader, kind: str, core_bandwidth: float, host: GpuHost = H100_HOST
) -> dict[str, float]:
    """Images/s at which each resource of the host is used up, by resource."""
    work, _ = _works(measured, kind)
    shape = measured.shape
    sent = shape.region if kind == DECODE else FLOAT_BYTES * shape.image
    real = Host(host.cores, host.memory, min(core_bandwidth, host.memory))
    cores = simulate(replace(work, image_bytes=0), real, batch=MICRO_BATCH, processes=GPUS)
    return {
        "cores": cores,
        "memory bandwidth": bandwidth_limit(work, real),
        "PCIe": host.link / sent,
        "disk, in the first epoch": host.disk / shape.stored,
        # the simulated order of the images makes it differ by 0.2 %
        TOGETHER: min(cores, simulate(work, real, batch=MICRO_BATCH, processes=GPUS)),
    }


def _gpu_host(measured: MeasuredLoader, bandwidth: Bandwidth, files: str) -> list[dict[str, Any]]:
    """Throughput limits of the loader on a host with eight H100."""
    stored = measured.shape.stored * IMAGENET_LENGTH
    note = f"ImageNet takes {stored / 1e9:.0f} GB of {H100_HOST.memory_bytes / 1e9:,.0f} GB of memory"
    found = []
    for kind in (WHOLE, DECODE):
        limits = host_limits(measured, kind, bandwidth.core)
        rows = [
            summary(what, [rate], note=note if what.startswith("disk") else "")
            for what, rate in limits.items()
        ]
        found.append({
            "name": "What eight H100 can be sent", "unit": "images/s", "modelled": True,
            "setting": {"host": H100_HOST.name, "files": files, "recipe": kind}, "contenders": rows,
        })  # fmt: skip
    return found


def _demand() -> list[dict[str, Any]]:
    """Images/s that eight H100 train, by the cost model: at the MFU published for a ViT, and at the roofline's."""
    from fastft.cost.mfu import PUBLISHED_MFU, roofline_mfu
    from fastft.cost.model import estimate
    from fastft.cost.overheads import FASTFT
    from fastft.machine.gpus import GPUS as CARDS

    card, never = CARDS["H100"], replace(FASTFT, loader_rate=float("inf"))
    rows = []
    for name, sections in MODELS.items():
        recipe = recipe_from_dict(name, sections)
        for mfu in (PUBLISHED_MFU["H100"], roofline_mfu(recipe, card, GPUS)):
            rate = GPUS * estimate(recipe, card, GPUS, mfu, never).images_per_second
            rows.append(summary(f"{name}, {mfu.basis}", [rate], note=f"MFU {mfu.value:.1%}"))
    return [{
        "name": "What eight H100 train", "unit": "images/s", "modelled": True, "setting": {"size": SIZE}, "contenders": rows
    }]  # fmt: skip


MODELS: dict[str, dict[str, Any]] = {"B/16": {}, "L/14": {"model": {"arch": "ViT-L-14-quickgelu"}}}


# in the contender's process -------------------------------------------------------------------------------------------


def loader_work(path: str, size: int, batch: int, repeat: int, policy: str, erase: float) -> dict[str, Arm]:
    """One thread: CPU seconds per image by part, between batches, and of each image.

    `read`, `decode`, `augment` are means of passes in batches. `each_...` are of the images one by one, for their spread:
    there the output stays in cache, so that their mean is lower.
    """
    from fastft.augment import draw_plan, parse_policy
    from fastft.data import Output, TrainLoader
    from fastft.data.decode import PARTS

    parsed = parse_policy(policy, erase_prob=erase)
    loader = TrainLoader(path, parsed, Output(size), batch_size=batch, workers=1)

    def draw(ids: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
        return draw_plan(parsed, seed=0, epoch=0, sample_ids=ids, heights=heights, widths=widths, size=size)

    def one_by_one() -> dict[str, list[float]]:
        loader.pop_timings()
        each: dict[str, list[float]] = {f"each_{part}": [] for part in PARTS}
        for number in range(loader.num_samples):
            loader.stage.run(np.array([number]), 0, draw)
            for part, seconds in loader.pop_timings().items():
                each[f"each_{part}"].append(seconds)
        return each

    def run() -> dict[str, Any]:
        loader.pop_timings()
        count, batches, began = 0, 0, time.process_time()
        for _ in range(repeat):
            for b in loader.epoch(0):
                count, batches = count + len(b.ids), batches + 1
        spent, seconds = time.process_time() - began, loader.pop_timings()
        between = max(0.0, spent - sum(seconds.values())) / batches
        means = {part: seconds[part] / count for part in PARTS}
        return {"count": count, "batch_seconds": between, **means, **one_by_one()}

    return {"pass": run}


def copies(threads: int, quick: bool) -> dict[str, Arm]:
    """Bytes/s that `threads` threads read and write when they copy arrays beyond every cache."""
    size = COPY_BYTES // 64 if quick else COPY_BYTES
    pairs = [(np.ones(size, np.uint8), np.ones(size, np.uint8)) for _ in range(threads)]

    def copy(pair: tuple[np.ndarray, np.ndarray]) -> None:
        for _ in range(COPIES):
            np.copyto(*pair)  # without the GIL

    def run() -> dict[str, Any]:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(copy, pairs))  # threads have started
            began = time.perf_counter()
            list(pool.map(copy, pairs))
            seconds = time.perf_counter() - began
        return {"count": threads * COPIES, "bandwidth": 2 * threads * COPIES * size / seconds}

    return {"copy": run}
