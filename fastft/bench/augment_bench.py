"""The whole recipe on one core from bytes to a tensor, where an image's time goes, and the GPU kernels alone."""

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from beton_tools.base.jit import njit
from beton_tools.jpeg import find_region, open_decoders
from beton_tools.jpeg.markers import OK, scan_header
from fastft.augment.cpu import CpuAugment, Finish, augment_image
from fastft.augment.draw import draw_plan
from fastft.augment.erase import UINT8
from fastft.augment.ops import IDENTITY
from fastft.augment.policies import AugmentPolicy
from fastft.augment.resize import source_regions
from fastft.bench.child import Arm, workers_seconds
from fastft.bench.contenders import dali as dali_loader
from fastft.bench.contenders import ours as our_loader
from fastft.bench.contenders.jpegs import JpegSet
from fastft.bench.contenders.measuring import found
from fastft.bench.contenders.stages import (
    DECODE,
    ENTROPY,
    FINISH,
    HAND_OVER,
    OPS,
    PARTS,
    PIXELS,
    READ,
    RESIZE,
    STAGES,
    entropy_share,
)  # fmt: skip
from fastft.bench.contenders.task import AUGMENT, ERASE, RECIPE, Task
from fastft.bench.dataset import ORIGINAL, RESIZED
from fastft.bench.harness import Contender, Findings, Make, Options, Planned, alternate, case, per_cpu_second, reported
from fastft.bench.loader_bench import task
from fastft.data.decode import CPU, now
from fastft.machine.bench_result import OURS, Measure, Setting
from fastft.machine.gpus import find_gpu

SIZE, DALI_BATCH = 224, 64
GPU_HEIGHT, GPU_WIDTH = 375, 500  # the median ImageNet image, decoded beforehand
GPU_BATCH, GPU_REPEATS = 256, 20
GPU_POLICIES = ("none", AUGMENT, "3aug", "augmix")


def recipe(options: Options) -> Findings:
    """Run the recipe on one core, from bytes in memory to normalised tensors."""
    cases = []
    for files in (RESIZED, ORIGINAL):
        given = {"folder": str(options.workspace.jpegs(files))}
        batch = 4 if options.quick else min(DALI_BATCH, options.images)
        groups = {
            OURS: [Contender(OURS, our_recipe, {"path": str(options.workspace.beton(files))}, package="fastft")],
            "dali": [Contender("DALI CPU", dali, {**given, "batch": batch}, (dali_loader.OTHER,), dali_loader.PACKAGE)],
        }
        groups |= peers(staged, given)
        rounds = alternate(options.wanted(groups), options.rounds, threads=1)
        cases.append(case(rounds, "recipe", per_cpu_second, {"files": files}))
    yield Measure(
        key="augment.recipe", bench="augment", title="Whole recipe, bytes to tensor, one core", unit="images per CPU second",
        about="JPEG bytes in memory: decode, bicubic random resized crop, flip, RandAugment m9 n2, normalise, random erasing.",
        cases=cases, setting={"size": SIZE, "images": options.images, "rounds": options.rounds},
    )  # fmt: skip


def split(options: Options) -> Findings:
    """Measure where one image's time goes in a loader with one thread, from the file to the consumer."""
    cases = []
    for files in (RESIZED, ORIGINAL):
        given = {"task": task(options, RECIPE, files, repeat=1).as_dict()}
        groups = {OURS: [Contender(OURS, our_split, given, package="fastft")], **peers(peer_split, given)}
        rounds = alternate(options.wanted(groups), min(options.rounds, 3), threads=1)
        cases.append(case(rounds, "split", reported("total"), {"files": files}, keep=PARTS))
    yield Measure(
        key="augment.split", bench="augment", title="Time of one image, by part", unit="CPU microseconds", better="lower",
        about="CPU time per image of a whole loader with one thread. Entropy decoding is the share of libjpeg-turbo's time that "
        "decoding at a quarter of the size takes. Hand-over is the rest: drawing, order, and passing batches on.",
        cases=cases, setting={"size": SIZE, "images": options.images, "rounds": min(options.rounds, 3)},
    )  # fmt: skip


def peers(make: Make, arguments: dict[str, Any]) -> dict[str, list[Contender]]:
    """Return a contender for every library whose transform has stages."""
    rows = {file: found(file, name) for file, (name, _) in STAGES.items()}
    return {
        file: [Contender(row.name, make, {**arguments, "file": file}, row.work[RECIPE], row.package)]
        for file, row in rows.items()
    }


def gpu(options: Options) -> Findings:
    """Measure milliseconds per batch by policy, and for the batch's copy to the GPU."""
    rounds = alternate(
        [Contender("fastft", gpu_augment, {}, package="fastft")], options.rounds, threads=options.threads
    )
    setting: Setting = {"batch": GPU_BATCH, "size": SIZE, "dtype": "float16", "gpu": torch.cuda.get_device_name()}
    yield Measure(
        key="augment.gpu", bench="augment", title="Augmentation on the GPU", unit="ms per batch", better="lower",
        about=f"Kernels alone, images of {GPU_HEIGHT} x {GPU_WIDTH} px decoded beforehand. gb: the least that must be read and "
        "written. bandwidth_share: that traffic as a share of the memory bandwidth in the data sheet.",
        cases=[
            case(rounds, policy, lambda t: 1e3 * t["wall"] / GPU_REPEATS, {"augment": policy}, ("gb", "bandwidth_share"))
            for policy in GPU_POLICIES
        ],
        setting=setting,
    )  # fmt: skip
    yield Measure(
        key="augment.copy", bench="augment", title="Copy of a batch to the GPU", unit="ms per batch", better="lower",
        about="The crops of a batch from pinned memory.", setting=setting,
        cases=[case(rounds, "copy", lambda t: 1e3 * t["wall"] / GPU_REPEATS, {}, ("gb",))],
    )  # fmt: skip


MEASURES = (
    Planned("augment.recipe", recipe, 240),
    Planned("augment.split", split, 150),
    Planned("augment.gpu", gpu, 60, needs_gpu=True),
)

# in the contender's process: the recipe -------------------------------------------------------------------------------


class OurRecipe:
    """Draw an epoch's plans, then decode and augment image by image, in one compiled loop."""

    def __init__(self, path: str) -> None:
        self.jpegs, self.policy = JpegSet(Path(path)), AugmentPolicy(AUGMENT, erase_prob=ERASE)
        self.augment, self.handle = CpuAugment(self.policy, SIZE), open_decoders(1)[0]
        height, width = int(self.jpegs.heights.max()), int(self.jpegs.widths.max())
        scratch = self.augment.new_scratch(1, height, width)[0]
        self.memory = self.jpegs.scratch(), scratch
        self.out = self.augment.new_output(16).view(np.uint8)

    def plan(self, epoch: int) -> np.ndarray:
        return draw_plan(
            self.policy, seed=0, epoch=epoch, sample_ids=np.arange(len(self.jpegs)), heights=self.jpegs.heights,
            widths=self.jpegs.widths, size=SIZE,
        )  # fmt: skip

    def __call__(self, plan: np.ndarray, *simpler: tuple[np.ndarray, Finish, np.ndarray]) -> np.ndarray:
        """Return seconds for augmentation, and then for the `simpler` plans on the same pixels. plans: (N,)."""
        regions, jpegs = source_regions(plan, SIZE), self.jpegs
        ways = ((plan, self.augment.finish, self.out), *simpler)
        spent = np.zeros(len(ways), np.int64)
        if decode_and_augment(jpegs.data, jpegs.ends, regions, ways, *self.memory, self.handle, spent):
            raise RuntimeError("an image could not be decoded, so the results would mean nothing")
        return spent / 1e9


@njit(nogil=True)
def decode_and_augment(
    data: np.ndarray, ends: np.ndarray, regions: np.ndarray, ways: Any, decode_scratch: np.ndarray,
    augment_scratch: np.ndarray, handle: int, spent: np.ndarray,
) -> int:  # fmt: skip
    """Decode every image and augment it in each of the ways (plan, finish, out), and return the number of failures.

    spent: (ways,) int64, nanoseconds for augmentation.
    """
    failures, timespec = 0, np.empty(2, np.int64)
    for k in range(len(regions)):
        jpeg = data[ends[k] : ends[k + 1]]
        head = scan_header(jpeg)
        y, x, h, w = np.int64(regions[k, 0]), np.int64(regions[k, 1]), np.int64(regions[k, 2]), np.int64(regions[k, 3])
        if head.code != OK:
            failures += 1
            continue
        code, at, stride = find_region(jpeg, head, y, x, h, w, decode_scratch, handle)
        if code != OK:
            failures += 1
            continue
        pixels = decode_scratch[at:]
        for way in range(len(ways)):
            plan, finish, out = ways[way]
            begun = now(CPU, timespec)
            target = out[k % len(out)]
            failures += augment_image(pixels, stride, (y, x, h, w), plan[k], finish, augment_scratch, target) != OK
            spent[way] += now(CPU, timespec) - begun
    return failures


def our_recipe(path: str) -> dict[str, Arm]:
    ours, epochs = OurRecipe(path), itertools.count()

    def run() -> int:
        ours(ours.plan(next(epochs)))
        return len(ours.jpegs)

    return {"recipe": run}


def staged(folder: str, file: str) -> dict[str, Arm]:
    """Apply a peer's transform to each image, from its bytes."""
    torch.set_num_threads(1)
    stages = STAGES[file][1](SIZE)
    files = [path.read_bytes() for path in sorted(Path(folder).glob("*/*"))]

    def run() -> int:
        for value in files:
            for _, stage in stages:
                value = stage(value)
        return len(files)

    return {"recipe": run}


def dali(folder: str, batch: int) -> dict[str, Arm]:
    paths = [str(p) for p in sorted(Path(folder).glob("*/*"))]
    pipeline = dali_loader.build(paths, Task(RECIPE, {"folder": folder}, SIZE, batch, 1), prefetch=False)
    batches = len(paths) // batch

    def run() -> int:
        for _ in range(batches):
            pipeline.run()
        return batches * batch

    return {"recipe": run}


# in the contender's process: the split ------------------------------------------------------------------------------


def our_split(task: dict[str, Any]) -> dict[str, Arm]:
    """Split the time with the loader's own clocks for reading, decoding and augmentation.

    Their parts are measured by leaving work out of the same kernels.
    """
    asked = Task(**task)
    loader, ours, epochs = our_loader.training_loader(asked), OurRecipe(asked.files["beton"]), itertools.count()
    jpegs = ours.jpegs
    entropy = entropy_share([jpegs.data[jpegs.ends[k] : jpegs.ends[k + 1]].tobytes() for k in range(len(jpegs))])

    def run() -> dict[str, float]:
        epoch = next(epochs)
        loader.pop_timings()
        began = time.process_time()
        count = sum(len(batch.ids) for batch in loader.epoch(epoch))
        total = time.process_time() - began
        spent, parts = loader.pop_timings(), _augment_parts(ours, epoch)
        scale = spent["augment"] / sum(parts.values())
        seconds = {READ: spent["read"], DECODE: spent["decode"], **{part: scale * s for part, s in parts.items()}}
        return as_split(seconds, total, count, entropy)

    return {"split": run}


def as_split(seconds: Mapping[str, float], total: float, count: int, entropy: float) -> dict[str, float]:
    """Return microseconds per image by part.

    seconds: by part, where DECODE includes entropy decoding. The remainder of `total` is hand-over.
    """
    decode = seconds[DECODE]
    parts = {**seconds, ENTROPY: entropy * decode, PIXELS: (1 - entropy) * decode}
    parts[HAND_OVER] = max(total - sum(seconds.values()), 0.0)
    microseconds = {part: 1e6 * parts[part] / count for part in PARTS}
    return {"count": count, "total": sum(microseconds.values()), **microseconds}


def _augment_parts(ours: OurRecipe, epoch: int) -> dict[str, float]:
    """Return seconds for resizing, for ops, and for normalising and erasing, as differences to plans without them."""
    plan = ours.plan(epoch)
    without = plan.copy()
    without["op"] = IDENTITY
    bare = without.copy()
    bare["erase"][..., 2] = 0
    finish = ours.augment.finish
    as_bytes = np.empty((len(ours.out), SIZE, SIZE, 3), np.uint8)
    whole, no_ops, resize = ours(plan, (without, finish, ours.out), (bare, finish._replace(dtype=UINT8), as_bytes))
    return {RESIZE: resize, OPS: max(whole - no_ops, 0.0), FINISH: max(no_ops - resize, 0.0)}


def peer_split(task: dict[str, Any], file: str) -> dict[str, Arm]:
    """Measure CPU time for a transform's stages, and for the same library's loader as a whole."""
    torch.set_num_threads(1)
    asked = Task(**task)
    name, make_stages = STAGES[file]
    stages, one_pass = make_stages(SIZE), found(file, name).make(asked)
    paths = sorted(Path(asked.files["folder"]).glob("*/*"))
    entropy = entropy_share([path.read_bytes() for path in paths])

    def run() -> dict[str, float]:
        own, workers = time.process_time(), workers_seconds()
        count = sum(one_pass())
        total = time.process_time() - own + workers_seconds() - workers
        seconds = dict.fromkeys((READ, *(part for part, _ in stages)), 0.0)
        for path in paths:
            began = time.process_time()
            value: Any = path.read_bytes()
            for part, stage in ((READ, None), *stages):
                value = value if stage is None else stage(value)
                ended = time.process_time()
                seconds[part] += ended - began
                began = ended
        per_pass = {part: s * count / len(paths) for part, s in seconds.items()}
        return as_split(per_pass, total, count, entropy)

    return {"split": run}


# in the contender's process: the GPU ---------------------------------------------------------------------------------


def gpu_augment(
    device: str = "cuda", policies: Sequence[str] = GPU_POLICIES, size: int = SIZE, batch: int = GPU_BATCH
) -> dict[str, Arm]:
    """Return an arm per policy. device "cpu": run the CPU back end on the same bytes, for tests."""
    from fastft.augment.cuda import CudaAugment

    def arm(name: str) -> Arm:
        plan = draw_plan(
            AugmentPolicy(name), seed=0, epoch=0, sample_ids=np.arange(batch), heights=np.full(batch, GPU_HEIGHT),
            widths=np.full(batch, GPU_WIDTH), size=size,
        )  # fmt: skip
        offsets = np.cumsum([0, *(source_regions(plan, size)[:, 2:].astype(np.int64).prod(1) * 3)])
        packed = torch.randint(0, 256, (int(offsets[-1]),), dtype=torch.uint8, device=device)
        if device == "cpu":
            cpu = CpuAugment(AugmentPolicy(name), size, "float16")
            return repeated(lambda: cpu(packed.numpy(), offsets[:-1], plan), batch, device)
        gpu = CudaAugment(AugmentPolicy(name), size, torch.float16, torch.device(device))
        tables = [torch.from_numpy(a).to(device) for a in (offsets, plan.view(np.uint8))]
        return timed_bytes(repeated(lambda: gpu(packed, *tables), batch, device), len(packed) + 2 * 3 * batch * size**2)

    arms = {name: arm(name) for name in policies}
    if device != "cpu":
        pinned = torch.empty(batch * GPU_HEIGHT * GPU_WIDTH * 3, dtype=torch.uint8, pin_memory=True)
        copy = repeated(lambda: pinned.to(device, non_blocking=True), batch, device)
        arms["copy"] = timed_bytes(copy, len(pinned))
    return arms


def timed_bytes(arm: Arm, num_bytes: int) -> Arm:
    """Add to the arm the GB per call, and the share of the GPU's memory bandwidth that moving them would take."""
    card = find_gpu(torch.cuda.get_device_name())

    def run() -> dict[str, Any]:
        began = time.perf_counter()
        count = arm()
        wall = time.perf_counter() - began
        figures: dict[str, Any] = {"count": count, "wall": wall, "gb": num_bytes / 1e9}
        if card is not None:
            figures["bandwidth_share"] = GPU_REPEATS * num_bytes / wall / card.bandwidth
        return figures

    return run


def repeated(call: Callable[[], object], batch: int, device: str) -> Arm:
    """Make GPU_REPEATS calls and wait for the device once."""

    def run() -> int:
        for _ in range(GPU_REPEATS):
            call()
        if device != "cpu":
            torch.cuda.synchronize()
        return GPU_REPEATS * batch

    return run
