"""Claim: decoding just the crop beats decoding the whole image, as stock FFCV and DALI do it.

Setting: one core, the whole process pinned to it; real ImageNet training images (FASTFT_IMAGENET_SAMPLE, n
= 700); RandomResizedCrop with scale 0.08-1 and ratio 3/4-4/3 (0.42 of the pixels on average); batches of
256; rounds that alternate between the arms in one process, the median of 7 with min and max. Images per CPU
second of the process, so that what else runs on the machine counts little. Everything is read from memory
or the page cache.

    500px   images of at most 500 px on the long side, JPEG quality 90, 4:2:0: FFCV's recommendation for
    ImageNet files   the original files, lossless with a crop index

    crop      decode_region of a random crop of every image into a packed buffer
    whole     the same JPEGs decoded whole by the same library
    ffcv      stock FFCV's Loader on the same .beton, one worker, with its RandomResizedCrop decoder alone
    ffcv-op   the decoder operation without the Loader
    dali      fn.decoders.image_random_crop on the CPU, on the original files

FFCV's decoder cannot be told not to resize (to 224 px), and takes the fast, less exact DCT; ours gives
Pillow's pixels.

Run: python benchmarks/decode.py [--rounds 7] [--images 700] [--json benchmarks/results/decode.json]
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.state import State
from ffcv.transforms import ToTensor
from numba import njit

from beton_tools.format import Beton
from beton_tools.jpeg import decode_region, open_decoders, scratch_bytes
from beton_tools.sources import Source, open_source
from beton_tools.writer import WriteOptions, write_beton

OUTPUT = 224  # what FFCV resizes to, as its ImageNet example does
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
BATCH = 256
DALI_BATCH = 100  # a divisor of the sample
SETS = {
    "500px": WriteOptions(max_resolution=500, quality=90, subsampling="4:2:0", lossless=False),
    "files": WriteOptions(),
}
Arm = Callable[[], None]


class JpegSet:
    """The JPEGs of a .beton side by side in memory, and its metadata; data_ptr is the number of the image."""

    def __init__(self, path: Path) -> None:
        beton = Beton.open(path)
        self.path = path
        self.data = np.concatenate([beton.image_bytes(k) for k in range(beton.num_samples)])
        self.ends = np.concatenate([[0], np.cumsum(beton.sizes)]).astype(np.int64)
        self.metadata = beton.image_column.copy()
        self.metadata["data_ptr"] = np.arange(beton.num_samples)

    def __len__(self) -> int:
        return len(self.metadata)


def random_crops(jpegs: JpegSet, rng: np.random.Generator) -> np.ndarray:
    """(N, 4) y, x, h, w, drawn like torchvision's and FFCV's RandomResizedCrop."""
    crops = np.zeros((len(jpegs), 4), np.int64)
    for crop, row in zip(crops, jpegs.metadata, strict=True):
        height, width = int(row["height"]), int(row["width"])
        crop[:] = 0, 0, height, width
        for _ in range(10):
            area, ratio = height * width * rng.uniform(*SCALE), np.exp(rng.uniform(*np.log(RATIO)))
            w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                crop[:] = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w
                break
    return crops


@njit(cache=True, nogil=True)
def decode_all(
    data: np.ndarray, ends: np.ndarray, regions: np.ndarray, offsets: np.ndarray,
    packed: np.ndarray, scratch: np.ndarray, handle: int,
) -> int:  # fmt: skip
    """Decode a region of every image into the packed buffer; the number of failures."""
    failures = 0
    for k in range(len(regions)):
        y, x, h, w = regions[k, 0], regions[k, 1], regions[k, 2], regions[k, 3]
        out = packed[offsets[k] : offsets[k] + 3 * h * w]
        failures += decode_region(data[ends[k] : ends[k + 1]], y, x, h, w, out, scratch, handle) != 0
    return failures


def region_arm(jpegs: JpegSet, plans: list[np.ndarray]) -> Arm:
    """Decode the regions of one plan (N, 4) after the other into the packed buffer of a batch."""
    heights, widths = jpegs.metadata["height"].astype(int), jpegs.metadata["width"].astype(int)
    scratch = np.empty(scratch_bytes(heights.max(), widths.max(), int(np.diff(jpegs.ends).max())), np.uint8)
    packed = np.empty(3 * BATCH * int((heights * widths).mean()), np.uint8)
    handle, next_plan = open_decoders(1)[0], itertools.cycle(plans)

    def run() -> None:
        regions = next(next_plan)
        if decode_all(
            jpegs.data, jpegs.ends, regions, packed_offsets(regions, packed.size), packed, scratch, handle
        ):
            raise SystemExit("an image could not be decoded: the figures would mean nothing")

    return run


def packed_offsets(regions: np.ndarray, capacity: int) -> np.ndarray:
    """Where each region goes in the packed buffer: behind the last one, or back to the start."""
    offsets, end = np.zeros(len(regions), np.int64), 0
    for k, size in enumerate(3 * regions[:, 2] * regions[:, 3]):
        offsets[k] = end if end + size <= capacity else 0
        end = offsets[k] + size
    return offsets


def whole_images(jpegs: JpegSet) -> np.ndarray:
    """(N, 4): regions that are the whole images."""
    zero = np.zeros(len(jpegs), np.int64)
    return np.stack([zero, zero, jpegs.metadata["height"], jpegs.metadata["width"]], axis=1).astype(np.int64)


@njit(nogil=True)
def memory_read(number: int, storage: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """What FFCV's memory managers do: the bytes behind a data_ptr."""
    data, ends = storage
    return data[ends[number] : ends[number + 1]]


def ffcv_arm(jpegs: JpegSet) -> Arm:
    """Stock FFCV from its Loader down."""
    decoder = RandomResizedCropRGBImageDecoder((OUTPUT, OUTPUT), SCALE, RATIO)
    loader = Loader(
        str(jpegs.path), BATCH, num_workers=1, order=OrderOption.RANDOM, drop_last=False,
        pipelines={"image": [decoder, ToTensor()], "label": None},
    )  # fmt: skip

    def run() -> None:
        images = sum(len(images) for (images,) in loader)
        assert images == len(jpegs)

    return run


def ffcv_op_arm(jpegs: JpegSet) -> Arm:
    """FFCV's decoder operation, driven as its Loader drives it: whole decode, crop, resize."""
    Compiler.set_num_threads(1)
    decoder = RandomResizedCropRGBImageDecoder((OUTPUT, OUTPUT), SCALE, RATIO)
    decoder.accept_globals(jpegs.metadata, memory_read)
    _, buffers = decoder.declare_state_and_memory(State(True, torch.device("cpu"), (), np.dtype("u1")))
    storage = tuple(np.empty((BATCH, *(int(n) for n in b.shape)), b.dtype) for b in buffers)
    decode = Compiler.compile(decoder.generate_code())

    def run() -> None:
        for start in range(0, len(jpegs), BATCH):
            batch = np.arange(start, min(start + BATCH, len(jpegs)))
            decode(batch, storage, jpegs.metadata, (jpegs.data, jpegs.ends))

    return run


def dali_arm(paths: list[Path]) -> Arm | None:
    """DALI's fused decode and random crop; None, and how to get it, when DALI is not installed."""
    try:
        from nvidia.dali import fn, pipeline_def
    except ImportError:
        print("no DALI: pip install nvidia-dali-cuda120")
        return None

    @pipeline_def(batch_size=DALI_BATCH, num_threads=1, device_id=None, prefetch_queue_depth=1)
    def decode() -> object:
        encoded, _ = fn.readers.file(files=[str(p) for p in paths], shuffle_after_epoch=False)
        return fn.decoders.image_random_crop(
            encoded, device="cpu", random_area=list(SCALE), random_aspect_ratio=list(RATIO)
        )

    pipeline = decode()
    pipeline.build()

    def run() -> None:
        for _ in range(len(paths) // DALI_BATCH):
            pipeline.run()

    return run


def measure(arms: dict[str, tuple[Arm, int]], rounds: int) -> dict[str, dict[str, float]]:
    """Images per second of every arm (its function, images in a round): median, min, max of the rounds."""
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds + 1):
        for name, (run, images) in arms.items():
            start = time.process_time()
            run()
            if number > 0:  # the first round compiles and warms up
                rates[name].append(images / (time.process_time() - start))
    return {n: {"median": statistics.median(r), "min": min(r), "max": max(r)} for n, r in rates.items()}


def report(name: str, jpegs: JpegSet, results: dict[str, dict[str, float]]) -> dict[str, object]:
    """Print one line per arm, and the ratio of the crop decode to it."""
    crop = results["crop"]["median"]
    print(f"{name}: {len(jpegs)} images, {len(jpegs.data) / len(jpegs) / 1e3:.1f} kB each")
    for arm, rate in results.items():
        rate["crop_is_faster_by"] = crop / rate["median"]
        ratio = "" if arm == "crop" else f"   crop / {arm}: {rate['crop_is_faster_by']:.2f}"
        print(f"  {arm:7s} {rate['median']:7.0f} img/s ({rate['min']:.0f}-{rate['max']:.0f}){ratio}")
    return {"images": len(jpegs), "bytes_per_image": len(jpegs.data) / len(jpegs), "arms": results}


def compare(name: str, path: Path, originals: list[Path], rounds: int) -> dict[str, object]:
    """All arms on one set, on one core."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    jpegs, rng = JpegSet(path), np.random.default_rng(0)
    arms = {
        "crop": region_arm(jpegs, [random_crops(jpegs, rng) for _ in range(rounds)]),
        "whole": region_arm(jpegs, [whole_images(jpegs)]),
        "ffcv": ffcv_arm(jpegs),
        "ffcv-op": ffcv_op_arm(jpegs),
    }
    counted = {arm: (run, len(jpegs)) for arm, run in arms.items()}
    dali = dali_arm(originals) if name == "files" else None
    if dali is not None:
        counted["dali"] = dali, len(originals) // DALI_BATCH * DALI_BATCH
    return report(name, jpegs, measure(counted, rounds))


def linked(paths: list[Path], folder: Path) -> Source:
    """Just these files as a source."""
    for path in paths:
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        link = folder / path.parent.name / path.name
        if not link.exists():
            link.symlink_to(path.resolve())
    return open_source(folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=700)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    folder = Path(os.environ.get("FASTFT_IMAGENET_SAMPLE", "../shared/data/imagenet-sample"))
    originals = sorted(folder.glob("*/*.JPEG"))[: args.images]
    if not originals:
        raise SystemExit(f"no images in {folder}; set FASTFT_IMAGENET_SAMPLE to a folder of <wnid>/*.JPEG")
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name, options in SETS.items():
            path = Path(temporary, f"{name}.beton")
            write_beton(path, linked(originals, Path(temporary, "images")), options)
            # A process each: FFCV's Loader changes a type that all of numba shares (`t1.mutable = False`).
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
                results[name] = fresh.submit(compare, name, path, originals, args.rounds).result()
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        record = {
            "machine": platform.processor() or platform.machine(),
            "rounds": args.rounds,
            "sets": results,
        }
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
