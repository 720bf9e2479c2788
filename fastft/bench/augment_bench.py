"""The whole recipe on one core from bytes to a tensor, where an image's time goes, and the GPU kernels alone."""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from beton_tools.base.jit import njit
from beton_tools.jpeg import find_region, open_decoders, turbo
from beton_tools.jpeg.markers import OK, parse, scan_header
from fastft.augment.cpu import CpuAugment, Finish, augment_image
from fastft.augment.draw import draw_plan
from fastft.augment.erase import UINT8
from fastft.augment.ops import IDENTITY
from fastft.augment.policies import AugmentPolicy
from fastft.augment.resize import source_regions
from fastft.bench.child import Arm, workers_seconds
from fastft.bench.dataset import ORIGINAL, RESIZED
from fastft.bench.decode_bench import UNDECODED, JpegSet
from fastft.bench.harness import Contender, Options
from fastft.bench.loader_bench import SIZE, loader_task
from fastft.bench.measure import CPU, CPU_RATE, LOADER, ON_GPU, SPLIT, Figure, Plan, Variant, enter, entered
from fastft.bench.ours import training_loader
from fastft.bench.task import AUGMENT, ERASE, PARTS, Entry, Part, Pass, Task, Work, entries, peer_module
from fastft.bench.ways import entered as entry_and_task
from fastft.data.decode import CPU as CPU_CLOCK
from fastft.data.decode import now
from fastft.machine.bench_result import Setting
from fastft.machine.gpus import find_gpu

GPU_HEIGHT, GPU_WIDTH = 375, 500  # the median ImageNet image, decoded beforehand
GPU_BATCH, GPU_REPEATS = 256, 20
GPU_POLICIES = ("none", AUGMENT, "3aug", "augmix")
PASSES = 2  # of decoding, to find the share of entropy decoding. The fastest one counts
QUARTER = 4  # decoding at a quarter of the size reads every coefficient, but computes only a sixteenth of the pixels


def recipe(options: Options) -> Iterator[Variant]:
    """Run the recipe on one core, from bytes in memory to normalised tensors."""
    for files in (RESIZED, ORIGINAL):
        task = loader_task(options, Work.MEMORY, files, repeat=1)
        yield Variant(entered(options, task, ours=__name__), {"files": files}, {"size": SIZE, "images": options.images})


def split(options: Options) -> Iterator[Variant]:
    """Measure where one image's time goes in a loader with one thread, from the file to the consumer."""
    for files in (RESIZED, ORIGINAL):
        task = loader_task(options, Work.RECIPE, files, repeat=1)
        peers = [(module, entry) for module in map(peer_module, options.peers) for entry in entries(module)]
        staged = [enter(module, entry, task, peer_split) for module, entry in peers if entry.stages]
        ours = [enter(LOADER, entry, task, our_split) for entry in entries(LOADER)]
        yield Variant(ours + staged, {"files": files}, {"size": SIZE, "images": options.images})


def gpu(options: Options) -> Iterator[Variant]:
    """Run every policy, and the copy of a batch to the GPU."""
    common: Setting = {"batch": GPU_BATCH, "size": SIZE, "dtype": "float16", "gpu": torch.cuda.get_device_name()}
    yield Variant([Contender("fastft", gpu_augment, {}, package="fastft")], {}, common, options.threads)


PLANS = (
    Plan("augment.recipe", 240, [Figure(
        "augment.recipe", "Whole recipe, bytes to tensor, one core", CPU_RATE, CPU, headline=2,
        about="JPEG bytes in memory: decode, bicubic random resized crop, flip, RandAugment m9 n2, normalise, random erasing.",
    )], recipe),
    Plan("augment.split", 150, [Figure(
        "augment.split", "Time of one image, by part", "CPU microseconds", "total", better="lower", keep=PARTS, chapter=SPLIT,
        about="CPU time per image of a whole loader with one thread. Entropy decoding is the share of libjpeg-turbo's time that "
        "decoding at a quarter of the size takes. Hand-over is the rest: drawing, order, and passing batches on.",
    )], split, most_rounds=3),
    Plan("augment.gpu", 60, [
        Figure(
            "augment.gpu", "Augmentation on the GPU", "ms per batch", "ms", better="lower", chapter=ON_GPU,
            about=f"Kernels alone, images of {GPU_HEIGHT} x {GPU_WIDTH} px decoded beforehand. gb: the least that must be read "
            "and written. bandwidth_share: that traffic as a share of the memory bandwidth in the data sheet.",
            keep=("gb", "bandwidth_share"), arms={policy: {"augment": policy} for policy in GPU_POLICIES},
        ),
        Figure(
            "augment.copy", "Copying a batch to the GPU", "ms per batch", "ms", better="lower", chapter=ON_GPU,
            about="A batch's crops from pinned memory.", keep=("gb",), arms={"copy": {}},
        ),
    ], gpu, needs_gpu=True),
)  # fmt: skip

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
        return self.jpegs.plan(self.policy, epoch, SIZE)

    def __call__(self, plan: np.ndarray, *simpler: tuple[np.ndarray, Finish, np.ndarray]) -> np.ndarray:
        """Return seconds for augmentation, and then for the `simpler` plans on the same pixels. plans: (N,)."""
        regions, jpegs = source_regions(plan, SIZE), self.jpegs
        ways = ((plan, self.augment.finish, self.out), *simpler)
        spent = np.zeros(len(ways), np.int64)
        decode_and_augment(jpegs.data, jpegs.ends, regions, ways, *self.memory, self.handle, spent)
        return spent / 1e9


@njit(nogil=True)
def decode_and_augment(
    data: np.ndarray, ends: np.ndarray, regions: np.ndarray, ways: Any, decode_scratch: np.ndarray,
    augment_scratch: np.ndarray, handle: int, spent: np.ndarray,
) -> None:  # fmt: skip
    """Decode every image and augment it in each of the ways (plan, finish, out).

    spent: (ways,) int64, nanoseconds for augmentation.
    """
    timespec = np.empty(2, np.int64)
    for k in range(len(regions)):
        jpeg = data[ends[k] : ends[k + 1]]
        head = scan_header(jpeg)
        if head.code != OK:
            raise RuntimeError(UNDECODED)
        y, x, h, w = np.int64(regions[k, 0]), np.int64(regions[k, 1]), np.int64(regions[k, 2]), np.int64(regions[k, 3])
        code, at, stride = find_region(jpeg, head, y, x, h, w, decode_scratch, handle)
        if code != OK:
            raise RuntimeError(UNDECODED)
        pixels = decode_scratch[at:]
        for way in range(len(ways)):
            plan, finish, out = ways[way]
            begun = now(CPU_CLOCK, timespec)
            if augment_image(pixels, stride, (y, x, h, w), plan[k], finish, augment_scratch, out[k % len(out)]) != OK:
                raise RuntimeError(UNDECODED)
            spent[way] += now(CPU_CLOCK, timespec) - begun


def our_recipe(task: Task) -> Pass:
    ours, epochs = OurRecipe(task.files["beton"]), itertools.count()

    def one_pass() -> Iterator[int]:
        ours(ours.plan(next(epochs)))
        yield len(ours.jpegs)

    return one_pass


ENTRIES = (Entry("fastft", "fastft", our_recipe, {Work.MEMORY: ()}),)

# in the contender's process: the split ------------------------------------------------------------------------------


def our_split(**given: Any) -> dict[str, Arm]:
    """Split the time with the loader's own clocks for reading, decoding and augmentation.

    Their parts are measured by leaving work out of the same kernels.
    """
    _, asked = entry_and_task(**given)
    loader, ours, epochs = training_loader(asked), OurRecipe(asked.files["beton"]), itertools.count()
    jpegs = ours.jpegs  # with the .beton's restart markers, which the files in the folder do not have
    entropy = entropy_share([jpegs.data[jpegs.ends[k] : jpegs.ends[k + 1]].tobytes() for k in range(len(jpegs))])

    def run() -> dict[str, float]:
        epoch = next(epochs)
        loader.pop_timings()
        began = time.process_time()
        count = sum(len(batch.ids) for batch in loader.epoch(epoch))
        total = time.process_time() - began
        spent, parts = loader.pop_timings(), _augment_parts(ours, epoch)
        scale = spent["augment"] / sum(parts.values())
        seconds = {Part.READ: spent["read"], Part.DECODED: spent["decode"]}
        return as_split(seconds | {part: scale * s for part, s in parts.items()}, total, count, entropy)

    return {"pass": run}


def peer_split(**given: Any) -> dict[str, Arm]:
    """Measure CPU time for a transform's stages, and for the same library's loader as a whole."""
    torch.set_num_threads(1)
    entry, asked = entry_and_task(**given)
    assert entry.stages is not None
    stages, one_pass, paths = entry.stages(asked.size), entry.make(asked), asked.paths
    entropy = entropy_share([path.read_bytes() for path in paths])

    def run() -> dict[str, float]:
        own, workers = time.process_time(), workers_seconds()
        count = sum(one_pass())
        total = time.process_time() - own + workers_seconds() - workers
        seconds = dict.fromkeys((Part.READ, *(part for part, _ in stages)), 0.0)
        for path in paths:
            value: Any = path
            for part, stage in ((Part.READ, Path.read_bytes), *stages):
                began = time.process_time()
                value = stage(value)
                seconds[part] += time.process_time() - began
        per_pass = {part: s * count / len(paths) for part, s in seconds.items()}
        return as_split(per_pass, total, count, entropy)

    return {"pass": run}


def as_split(seconds: Mapping[str, float], total: float, count: int, entropy: float) -> dict[str, float]:
    """Return microseconds per image by part.

    seconds: by part, where Part.DECODED includes entropy decoding. The remainder of `total` is hand-over.
    """
    decode = seconds[Part.DECODED]
    parts = {**seconds, Part.ENTROPY: entropy * decode, Part.PIXELS: (1 - entropy) * decode}
    parts[Part.HAND_OVER] = max(total - sum(seconds.values()), 0.0)
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
    return {Part.RESIZE: resize, Part.OPS: max(whole - no_ops, 0.0), Part.FINISH: max(no_ops - resize, 0.0)}


def entropy_share(files: Sequence[bytes]) -> float:
    """Estimate the share of libjpeg-turbo's decoding time that entropy decoding takes for these JPEGs.

    It is about the share that decoding at QUARTER takes.
    """
    handle = int(open_decoders(1)[0])
    sources = [np.frombuffer(file, np.uint8) for file in files]
    sizes = [(head.height, head.width) for head in map(parse, sources)]
    pixels = np.empty(3 * max(height * width for height, width in sizes), np.uint8)
    fastest: dict[int, float] = {}
    for scale in PASSES * (QUARTER, 1):
        began = time.process_time()
        for source, (height, width) in zip(sources, sizes, strict=True):
            shape = -(-height // scale), -(-width // scale)
            if turbo.decompress(handle, source.ctypes.data, source.size, pixels.ctypes.data, *shape) != OK:
                raise RuntimeError(UNDECODED)
        fastest[scale] = min(fastest.get(scale, np.inf), time.process_time() - began)
    return float(min(1.0, fastest[QUARTER] / fastest[1]))


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
        return repeated(lambda: gpu(packed, *tables), batch, device, len(packed) + 2 * 3 * batch * size**2)

    arms = {name: arm(name) for name in policies}
    if device != "cpu":
        pinned = torch.empty(batch * GPU_HEIGHT * GPU_WIDTH * 3, dtype=torch.uint8, pin_memory=True)
        arms["copy"] = repeated(lambda: pinned.to(device, non_blocking=True), batch, device, len(pinned))
    return arms


def repeated(call: Callable[[], object], batch: int, device: str, num_bytes: int = 0) -> Arm:
    """Make GPU_REPEATS calls and wait for the device once.

    num_bytes: per call. On a GPU, the arm also returns the GB, and the share of the GPU's memory bandwidth that moving them
    would take.
    """

    def run() -> int | dict[str, Any]:
        count, began = GPU_REPEATS * batch, time.perf_counter()
        for _ in range(GPU_REPEATS):
            call()
        if device == "cpu":
            return count
        torch.cuda.synchronize()
        wall, card = time.perf_counter() - began, find_gpu(torch.cuda.get_device_name())
        share = {"bandwidth_share": GPU_REPEATS * num_bytes / wall / card.bandwidth} if card else {}
        return {"count": count, "wall": wall, "ms": 1e3 * wall / GPU_REPEATS, "gb": num_bytes / 1e9, **share}

    return run
