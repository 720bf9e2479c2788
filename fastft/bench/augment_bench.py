"""Augmentation: the paper's whole recipe against timm, torchvision and DALI; and on a GPU against a copy of the bytes that it
must move: the packed regions, the resized images written and read, and the output.

From bytes in memory (DALI: in the page cache) to a normalised tensor. timm 1.0 with Pillow 13 raises on posterising to 0 bits;
such an image is transformed again, as a loader would.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from beton_tools.jpeg import open_decoders, scratch_bytes
from fastft.augment import CpuAugment, draw_plan, parse_policy, source_regions
from fastft.bench.child import Arm, calling
from fastft.bench.dataset import SETS, JpegSet
from fastft.bench.decode_bench import decode_and_augment
from fastft.bench.harness import Contender, Findings, Options, Trial, alternate, measure, per_cpu_second
from fastft.bench.loaders import AUGMENT, dali_pipeline, timm_transform, torchvision_transform

SIZE = 224
GPU_HEIGHT, GPU_WIDTH = 375, 500  # the median ImageNet image, decoded beforehand
GPU_BATCH, GPU_REPEATS = 256, 20
GPU_POLICIES = ("none", AUGMENT, "3aug", "augmix")


def run(options: Options) -> Findings:
    yield from _whole_recipe(options)
    if torch.cuda.is_available():
        yield from _on_gpu(options)


def _whole_recipe(options: Options) -> Findings:
    """One measure per set of files, from the same rounds."""
    ours = {f"fastft, {name}": name for name in SETS}
    files, note = {"paths": [str(p) for p in options.workspace.images.paths]}, "on the original files"
    contenders = options.wanted({
        "fastft": [
            Contender(who, our_recipe, {"path": str(options.workspace.beton(name))}) for who, name in ours.items()
        ],
        "timm": [Contender("timm", pillow_recipe, {"library": "timm", **files}, f"create_transform, {note}")],
        "torchvision": [Contender("torchvision v2", pillow_recipe, {"library": "torchvision", **files}, note)],
        "dali": [Contender("DALI CPU", dali_recipe, files, note)],
    })  # fmt: skip
    rounds = alternate(contenders, options.rounds, threads=1)
    for own, name in ours.items():
        only = [who for who in (*rounds.trials, *rounds.skipped) if who == own or who not in ours]
        setting = {"augment": AUGMENT, "erase": 0.25, "size": SIZE, "our files": name, "images": options.images}
        yield measure(
            "Whole recipe", rounds, "recipe", per_cpu_second, "images/s per core", setting,
            only=only, rename={own: "fastft"},
        )  # fmt: skip


def _on_gpu(options: Options) -> Findings:
    """One measure per policy; milliseconds of a batch."""
    contenders = [Contender("fastft", gpu_augment, {}), Contender("copy of its bytes", gpu_copies, {})]
    rounds = alternate(contenders, options.rounds, threads=options.threads)
    for policy in GPU_POLICIES:
        setting = {"augment": policy, "batch": GPU_BATCH, "size": SIZE, "dtype": "float16"}
        yield measure("Augmentation on the GPU", rounds, policy, _gpu_ms, "ms", setting, better="lower")


def _gpu_ms(trial: Trial) -> float:
    return 1e3 * trial["wall"] / GPU_REPEATS


# in the contender's process: the whole recipe


def our_recipe(path: str, size: int = SIZE, augment_policy: str = AUGMENT) -> dict[str, Arm]:
    """Draw the plans of an epoch, then decode and augment image by image."""
    jpegs, policy, epochs = JpegSet(Path(path)), parse_policy(augment_policy), itertools.count()
    heights, widths = jpegs.shapes
    height, width, largest = int(heights.max()), int(widths.max()), int(np.diff(jpegs.ends).max())
    augment, handle = CpuAugment(policy, size), open_decoders(1)[0]
    decode_scratch = np.empty(scratch_bytes(height, width, largest), np.uint8)
    augment_scratch = augment.new_scratch(1, height, width)[0]
    scratch = (np.empty(3 * height * width, np.uint8), decode_scratch, augment_scratch)
    out, ids = augment.new_output(16), np.arange(len(jpegs))

    def run() -> int:
        plan = draw_plan(policy, seed=0, epoch=next(epochs), sample_ids=ids, heights=heights, widths=widths, size=size)
        regions = source_regions(plan, size)
        if decode_and_augment(jpegs.data, jpegs.ends, regions, plan, augment.finish, scratch, handle, out):
            raise RuntimeError("an image could not be decoded: the figures would mean nothing")
        return len(jpegs)

    return {"recipe": run}


def pillow_recipe(library: str, paths: Sequence[str]) -> dict[str, Arm]:
    """Open each image with Pillow from memory, and transform it by timm or torchvision."""
    torch.set_num_threads(1)
    transform = {"timm": timm_transform, "torchvision": torchvision_transform}[library](SIZE)

    def read(file: bytes) -> object:
        return transform(Image.open(BytesIO(file)).convert("RGB"))

    return {"recipe": calling(partial(read, Path(p).read_bytes()) for p in paths)}


def dali_recipe(paths: Sequence[str]) -> dict[str, Arm]:
    batch = min(100, len(paths))
    pipeline = dali_pipeline(list(paths), SIZE, batch, threads=1, prefetch=False)
    return {"recipe": calling([pipeline.run] * (len(paths) // batch), batch)}


# on a GPU


def gpu_augment(
    device: str = "cuda", policies: Sequence[str] = GPU_POLICIES, size: int = SIZE, batch: int = GPU_BATCH
) -> dict[str, Arm]:
    """An arm per policy. device "cpu": the CPU back end on the same bytes, for tests."""
    from fastft.augment.cuda import CudaAugment

    def arm(name: str) -> Arm:
        plan, offsets = planned(name, size, batch)
        packed = torch.randint(0, 256, (int(offsets[-1]),), dtype=torch.uint8, device=device)
        if device == "cpu":
            cpu = CpuAugment(parse_policy(name), size, "float16")
            return repeated(lambda: cpu(packed.numpy(), offsets[:-1], plan), batch, device)
        gpu = CudaAugment(parse_policy(name), size, torch.float16, torch.device(device))
        tables = [torch.from_numpy(a).to(device) for a in (offsets, plan.view(np.uint8))]
        return repeated(lambda: gpu(packed, *tables), batch, device)

    return {name: arm(name) for name in policies}


def gpu_copies(
    device: str = "cuda", policies: Sequence[str] = GPU_POLICIES, size: int = SIZE, batch: int = GPU_BATCH
) -> dict[str, Arm]:
    """An arm per policy that copies as many bytes as the kernels must move."""

    def arm(name: str) -> Arm:
        moved = int(planned(name, size, batch)[1][-1]) + 4 * batch * size * size * 3
        source = torch.empty(moved // 2, dtype=torch.uint8, device=device)  # a copy reads and writes
        target = torch.empty_like(source)
        return repeated(lambda: target.copy_(source), batch, device)

    return {name: arm(name) for name in policies}


def planned(name: str, size: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """The plan of a batch, and where each image's region begins in the packed buffer."""
    plan = draw_plan(
        parse_policy(name), seed=0, epoch=0, sample_ids=np.arange(batch), heights=np.full(batch, GPU_HEIGHT),
        widths=np.full(batch, GPU_WIDTH), size=size,
    )  # fmt: skip
    return plan, np.cumsum([0, *(source_regions(plan, size)[:, 2:].astype(np.int64).prod(1) * 3)])


def repeated(call: Callable[[], object], batch: int, device: str) -> Arm:
    """GPU_REPEATS calls and one wait for the device."""

    def run() -> int:
        for _ in range(GPU_REPEATS):
            call()
        if device != "cpu":
            torch.cuda.synchronize()
        return GPU_REPEATS * batch

    return run
