"""Claim: the paper's whole CPU recipe runs at least 4 times as fast as timm's or DALI's, and exactly.

Setting: one core, the whole process pinned to it; CPU time; real ImageNet training images
(FASTFT_IMAGENET_SAMPLE), in memory (for DALI in the page cache); alternating rounds in one process, medians
over the rounds. Printed: milliseconds or images per second of either side, how many times as fast ours is.

    ops      each RandAugment op (magnitude 9) on 32 images of 224 x 224, against timm's call of Pillow
    resize   antialiased bicubic to 224: a 300 x 350 crop, and the crops of a random-resized-crop plan
    recipe   bytes to normalised tensor: decode, bicubic random resized crop, flip, RandAugment m9 n2 mstd0.5,
             normalise, erase 25 %. Ours from crop-indexed files of at most 500 px at quality 90, and from the
             originals with an index (lossless); timm's create_transform and DALI from the originals.

timm with Pillow 13 raises on posterising to 0 bits; such an image is transformed again, as a loader would.

Run: python benchmarks/augment.py [--rounds 9] [--images 256] [--only ops,resize,recipe] [--json FILE]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import numpy as np
import torch
from numba import njit
from PIL import Image
from timm.data import auto_augment, create_transform

from beton_tools.jpeg import (
    JpegError,
    add_index,
    decode_image,
    decode_region,
    encode_indexed,
    open_decoders,
    parse,
    scratch_bytes,
)
from fastft.augment import draw_plan, parse_policy, source_regions
from fastft.augment.cpu import CpuAugment, augment_image
from fastft.augment.levels import level_argument
from fastft.augment.ops_image import op_scratch_size, run_op
from fastft.augment.policies import INCREASING_OPS
from fastft.augment.resize import resize_region, resize_scratch_size

SIZE, MAX_SIDE, QUALITY = 224, 500, 90
TYPICAL_CROP = (300, 350)
OP_IMAGES = 32
RECIPE = parse_policy("rand-m9-mstd0.5-inc1")
FILL = np.array(RECIPE.fill, np.uint8)
BICUBIC = Image.Resampling.BICUBIC
Arm = Callable[[], None]


def measure(arms: dict[str, tuple[Arm, int]], rounds: int) -> dict[str, float]:
    """Median CPU milliseconds per image of every arm (its function, images in a round)."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds + 1):
        for name, (run, images) in arms.items():
            start = time.process_time()
            run()
            if number > 0:  # the first round compiles and warms up
                times[name].append((time.process_time() - start) / images * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def scaled(file: bytes, side: int) -> np.ndarray:
    """The decoded file, its longer side at most `side`."""
    image = Image.fromarray(decode_image(file))
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.asarray(image)


# -- ops -----------------------------------------------------------------------------------------------------


def op_arm(name: str, images: list[np.ndarray]) -> Arm:
    op, argument = level_argument(name, 9.0, 1, height=SIZE, width=SIZE)
    sources = [np.append(image, np.uint8(0))[:-1] for image in images]
    target, scratch = np.empty_like(sources[0]), np.empty(op_scratch_size(SIZE, SIZE), np.uint8)

    def run() -> None:
        for source in sources:
            run_op(op, argument, source, target, SIZE, SIZE, FILL, True, scratch)

    return run


def pillow_op_arm(name: str, images: list[np.ndarray]) -> Arm:
    level = auto_augment.LEVEL_TO_ARG[name]
    arguments = level(9.0, {}) if level else ()
    function, pictures = auto_augment.NAME_TO_OP[name], [Image.fromarray(image) for image in images]

    def run() -> None:
        for picture in pictures:
            function(picture, *arguments, fillcolor=RECIPE.fill, resample=BICUBIC)

    return run


def benchmark_ops(files: list[bytes], rounds: int) -> dict[str, Any]:
    images = [
        np.asarray(Image.open(BytesIO(f)).convert("RGB").resize((SIZE, SIZE))) for f in files[:OP_IMAGES]
    ]
    results = {}
    for name in INCREASING_OPS:
        arms = {
            "ours": (op_arm(name, images), len(images)),
            "pillow": (pillow_op_arm(name, images), len(images)),
        }
        results[name] = compare(name, measure(arms, rounds), "ms")
    ratios = [result["ratio"]["pillow"] for result in results.values()]
    print(f"  ratio: least {min(ratios):.2f}, mean {statistics.mean(ratios):.2f}")
    return results


# -- resize --------------------------------------------------------------------------------------------------


def resize_arm(crops: list[np.ndarray]) -> Arm:
    pixels = [np.ascontiguousarray(crop).reshape(-1) for crop in crops]
    boxes = [(0, 0, *crop.shape[:2]) for crop in crops]
    target, origin = (SIZE, SIZE), (0, 0)
    scratch = np.empty(max(resize_scratch_size(*crop.shape[:2], SIZE) for crop in crops), np.uint8)
    out = np.empty(SIZE * SIZE * 3, np.uint8)

    def run() -> None:
        for flat, box in zip(pixels, boxes, strict=True):
            resize_region(flat, box[3] * 3, box, box, target, origin, False, True, SIZE, scratch, out)

    return run


def pillow_resize_arm(crops: list[np.ndarray]) -> Arm:
    pictures = [Image.fromarray(crop) for crop in crops]

    def run() -> None:
        for picture in pictures:
            picture.resize((SIZE, SIZE), BICUBIC)

    return run


def benchmark_resize(files: list[bytes], rounds: int) -> dict[str, Any]:
    images = [scaled(file, MAX_SIDE) for file in files]
    h, w = TYPICAL_CROP
    typical = [image[:h, :w] for image in images if image.shape[0] >= h and image.shape[1] >= w]
    boxes = plan_of([image.shape[:2] for image in images], 0)["crop"]
    planned = [image[y : y + h, x : x + w] for image, (y, x, h, w) in zip(images, boxes, strict=True)]
    results = {}
    for name, crops in {f"{h} x {w}": typical, "planned crops": planned}.items():
        arms = {"ours": (resize_arm(crops), len(crops)), "pillow": (pillow_resize_arm(crops), len(crops))}
        results[name] = compare(f"{name} ({len(crops)} images)", measure(arms, rounds), "ms")
    return results


# -- recipe --------------------------------------------------------------------------------------------------


def plan_of(shapes: list[tuple[int, int]], epoch: int) -> np.ndarray:
    heights, widths = zip(*shapes, strict=True)
    ids = np.arange(len(shapes))
    return draw_plan(RECIPE, seed=0, epoch=epoch, sample_ids=ids, heights=heights, widths=widths, size=SIZE)


@njit(cache=True)
def decode_and_augment(data, ends, regions, plan, finish, room, handle, out):  # type: ignore[no-untyped-def]
    """Carry out the plan image by image; the number of failures."""
    pixels, decode_scratch, augment_scratch = room
    failures = 0
    for k in range(len(plan)):
        y, x, h, w = regions[k]
        status = decode_region(data[ends[k] : ends[k + 1]], y, x, h, w, pixels, decode_scratch, handle)
        if status == 0:
            region, into = (y, x, h, w), out[k % len(out)]
            status = augment_image(pixels, 3 * w, region, plan[k], finish, augment_scratch, into)
        failures += status != 0
    return failures


def recipe_arm(files: list[bytes]) -> Arm:
    """Ours: draw the plans of an epoch, then decode and augment image by image."""
    heads = [parse(file) for file in files]
    shapes = [(head.height, head.width) for head in heads]
    height, width = (max(shape[k] for shape in shapes) for k in (0, 1))
    data, ends = np.frombuffer(b"".join(files), np.uint8), np.cumsum([0] + [len(f) for f in files])
    augment, handle, epochs = CpuAugment(RECIPE, SIZE), open_decoders(1)[0], itertools.count()
    decode_scratch = np.empty(scratch_bytes(height, width, max(len(f) for f in files)), np.uint8)
    room = (np.empty(3 * height * width, np.uint8), decode_scratch, augment.new_scratch(1, height, width)[0])
    out = augment.new_output(16)

    def run() -> None:
        plan = plan_of(shapes, next(epochs))
        regions = source_regions(plan, SIZE)
        if decode_and_augment(data, ends, regions, plan, augment.finish, room, handle, out):
            raise SystemExit("an image could not be decoded: the figures would mean nothing")

    return run


def timm_arm(files: list[bytes]) -> Arm:
    transform = create_transform(
        SIZE, is_training=True, auto_augment="rand-m9-mstd0.5-inc1", interpolation="bicubic", re_prob=0.25,
        re_mode="pixel", mean=RECIPE.mean, std=RECIPE.std,
    )  # fmt: skip

    def run() -> None:
        for file in files:
            image, done = Image.open(BytesIO(file)).convert("RGB"), False
            while not done:
                with suppress(ValueError):  # posterise to 0 bits
                    transform(image)
                    done = True

    return run


def dali_arm(paths: list[Path]) -> tuple[Arm, int] | None:
    """DALI's recipe and the images of a round; None, and how to get it, when DALI is not installed."""
    try:
        from nvidia.dali import fn, pipeline_def, types
        from nvidia.dali.auto_aug import rand_augment
    except ImportError:
        print("  no DALI: pip install nvidia-dali-cuda120")
        return None
    batch = min(128, len(paths))

    @pipeline_def(
        batch_size=batch, num_threads=1, device_id=None, prefetch_queue_depth=1, enable_conditionals=True
    )
    def recipe() -> Any:
        encoded, _ = fn.readers.file(files=[str(p) for p in paths])
        images = fn.decoders.image_random_crop(
            encoded, random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3]
        )
        images = fn.resize(images, size=[SIZE, SIZE], interp_type=types.INTERP_CUBIC, antialias=True)
        images = fn.flip(images, horizontal=fn.random.coin_flip(probability=0.5))
        images = rand_augment.rand_augment(images, n=2, m=9, fill_value=128)
        images = fn.crop_mirror_normalize(
            images,
            mean=[255 * m for m in RECIPE.mean],
            std=[255 * s for s in RECIPE.std],
            output_layout="HWC",
        )
        if fn.random.coin_flip(probability=0.25, dtype=types.BOOL):
            shape = fn.random.uniform(range=[0.15, 0.6], shape=[2])
            anchor = fn.random.uniform(range=[0.0, 0.4], shape=[2])
            images = fn.erase(images, anchor=anchor, shape=shape, normalized=True, axis_names="HW")
        return images

    pipeline = recipe()
    pipeline.build()
    batches = len(paths) // batch

    def run() -> None:
        for _ in range(batches):
            pipeline.run()

    return run, batches * batch


def indexed(files: list[bytes]) -> list[bytes]:
    """The originals with a crop index; those that cannot have one losslessly are encoded again."""
    results = []
    for file in files:
        try:
            results.append(add_index(file))
        except JpegError:
            results.append(encode_indexed(decode_image(file), 95, "4:4:4"))
    return results


def benchmark_recipe(files: list[bytes], paths: list[Path], rounds: int) -> dict[str, Any]:
    small = [encode_indexed(scaled(file, MAX_SIDE), QUALITY, "4:2:0") for file in files]
    arms = {
        "ours, 500 px": (recipe_arm(small), len(files)),
        "ours, lossless": (recipe_arm(indexed(files)), len(files)),
        "timm": (timm_arm(files), len(files)),
    }
    dali = dali_arm(paths)
    if dali is not None:
        arms["DALI"] = dali
    rates = {name: 1e3 / milliseconds for name, milliseconds in measure(arms, rounds).items()}
    for name, rate in rates.items():
        against = (f"{ours / rate:.2f}" for arm, ours in rates.items() if arm.startswith("ours"))
        print(f"  {name:16s}{rate:7.0f} img/s   ours, 500 px and lossless, against it: {', '.join(against)}")
    return {"images_per_second": rates}


def compare(name: str, times: dict[str, float], unit: str) -> dict[str, Any]:
    ratio = {peer: times[peer] / times["ours"] for peer in times if peer != "ours"}
    cells = "".join(f"{arm} {value:7.3f} {unit}  " for arm, value in times.items())
    print(f"  {name:24s}{cells}ratio " + ", ".join(f"{r:.2f}" for r in ratio.values()))
    return {"milliseconds": times, "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--only", default="ops,resize,recipe", help="comma-separated parts")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    folder = Path(os.environ.get("FASTFT_IMAGENET_SAMPLE", "../shared/data/imagenet-sample"))
    paths = sorted(folder.glob("*/*.JPEG"))[: args.images]
    if not paths:
        raise SystemExit(f"no images in {folder}; set FASTFT_IMAGENET_SAMPLE to a folder of <wnid>/*.JPEG")
    files = [path.read_bytes() for path in paths]
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "ops": lambda: benchmark_ops(files, args.rounds),
        "resize": lambda: benchmark_resize(files, args.rounds),
        "recipe": lambda: benchmark_recipe(files, paths, args.rounds),
    }
    results = {}
    for name in args.only.split(","):
        print(f"{name}: {len(files)} images, {args.rounds} rounds")
        results[name] = parts[name]()
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        record = {"machine": platform.processor() or platform.machine(), "rounds": args.rounds, **results}
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
