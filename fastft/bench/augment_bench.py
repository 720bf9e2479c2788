"""Augmentation: single ops and resize against Pillow, the paper's whole recipe against timm, torchvision and DALI.

timm 1.0 with Pillow 13 raises on posterising to 0 bits; such an image is transformed again, as a loader would.
"""

import itertools
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from fastft.bench.child import Arm
from fastft.bench.dataset import MAX_SIDE, JpegSet
from fastft.bench.harness import Contender, alternate, cpu_milliseconds, measure, per_cpu_second
from fastft.bench.options import Findings, Options
from fastft.recipe.constants import CLIP_MEAN, CLIP_STD

SIZE = 224
AUGMENT = "rand-m9-mstd0.5-inc1"  # the paper's, used with random erasing 0.25
TYPICAL_CROP = (300, 350)
OP_IMAGES, OP_REPEATS = 32, 8
TRIES = 20  # about 1 % of the images fail


def run(options: Options) -> Findings:
    import torch

    from fastft.augment.policies import INCREASING_OPS
    from fastft.bench import augment_gpu_bench

    yield from _recipe(options)
    arguments = {"paths": [str(p) for p in options.workspace.images.paths]}
    resizes, ops = (
        options.wanted({
            "fastft": [Contender("fastft", ours, arguments)], "pillow": [Contender("Pillow", pillows, arguments)],
        })
        for ours, pillows in ((our_resizes, pillow_resizes), (our_ops, pillow_ops))
    )  # fmt: skip
    rounds = alternate(resizes, options.rounds, threads=1)
    for arm in rounds.trials["fastft"]:
        setting = {"crops": arm, "to": SIZE, "images": options.images}
        yield measure("Bicubic resize", rounds, arm, cpu_milliseconds, "ms", setting, better="lower")
    rounds = alternate(ops, options.rounds, threads=1)
    for op in INCREASING_OPS:
        setting = {"op": op, "size": SIZE, "magnitude": 9, "images": min(OP_IMAGES, options.images)}
        yield measure("RandAugment op", rounds, op, cpu_milliseconds, "ms", setting, better="lower")
    if torch.cuda.is_available():
        yield from augment_gpu_bench.measures(options)


# whole recipe -------------------------------------------------------------------------------------------------------


def _recipe(options: Options) -> Findings:
    """From bytes in memory (DALI: in the page cache) to a normalised tensor; one measure per set of files, same rounds."""
    ours = [
        Contender(f"fastft, {name}", our_recipe, {"path": str(options.workspace.beton(name))})
        for name in options.workspace.sets
    ]
    files = {"paths": [str(p) for p in options.workspace.images.paths]}
    peers = {
        "fastft": ours,
        "timm": [Contender("timm", timm_recipe, files, "create_transform, on the original files")],
        "torchvision": [Contender("torchvision v2", torchvision_recipe, files, "on the original files")],
        "dali": [Contender("DALI CPU", dali_recipe, files, "on the original files")],
    }
    rounds = alternate(options.wanted(peers), options.rounds, threads=1)
    names = [*rounds.trials, *rounds.skipped]
    for own, name in zip(ours, options.workspace.sets, strict=True):
        only = [who for who in names if who == own.name or who not in {c.name for c in ours}]
        setting = {
            "augment": AUGMENT, "erase": 0.25, "size": SIZE, "our files": name, "images": options.images
        }  # fmt: skip
        yield measure(
            "Whole recipe", rounds, "recipe", per_cpu_second, "images/s per core", setting,
            only=only, rename={own.name: "fastft"},
        )  # fmt: skip


def our_recipe(path: str, size: int = SIZE, augment_policy: str = AUGMENT) -> dict[str, Arm]:
    """Draw the plans of an epoch, then decode and augment image by image."""
    from beton_tools.jpeg import open_decoders, scratch_bytes
    from fastft.augment import draw_plan, parse_policy, source_regions
    from fastft.augment.cpu import CpuAugment
    from fastft.bench.compiled_loops import decode_and_augment

    jpegs, policy, epochs = JpegSet(Path(path)), parse_policy(augment_policy), itertools.count()
    heights, widths = jpegs.shapes
    height, width, largest = int(heights.max()), int(widths.max()), int(np.diff(jpegs.ends).max())
    augment, handle = CpuAugment(policy, size), open_decoders(1)[0]
    decode_scratch = np.empty(scratch_bytes(height, width, largest), np.uint8)
    augment_scratch = augment.new_scratch(1, height, width)[0]
    scratch = (np.empty(3 * height * width, np.uint8), decode_scratch, augment_scratch)
    out, ids = augment.new_output(16), np.arange(len(jpegs))

    def run() -> int:
        plan = draw_plan(
            policy, seed=0, epoch=next(epochs), sample_ids=ids, heights=heights, widths=widths, size=size
        )
        regions = source_regions(plan, size)
        if decode_and_augment(jpegs.data, jpegs.ends, regions, plan, augment.finish, scratch, handle, out):
            raise RuntimeError("an image could not be decoded: the figures would mean nothing")
        return len(jpegs)

    return {"recipe": run}


def timm_recipe(paths: Sequence[str]) -> dict[str, Arm]:
    return {"recipe": transform_arm(timm_transform(SIZE), paths)}


def timm_transform(size: int) -> Callable[[Any], Any]:
    """timm's transform with the paper's recipe."""
    import timm.data

    transform = timm.data.create_transform(
        size, is_training=True, auto_augment=AUGMENT, interpolation="bicubic", re_prob=0.25, re_mode="pixel",
        mean=CLIP_MEAN, std=CLIP_STD,
    )  # fmt: skip
    return retrying(transform)


def retrying(transform: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The transform, repeated if it asks Pillow 13 to posterise to 0 bits; picklable."""
    return partial(_again, transform)


def _again(transform: Callable[[Any], Any], image: Any) -> Any:
    for _ in range(TRIES):
        with suppress(ValueError):
            return transform(image)
    return transform(image)


def torchvision_recipe(paths: Sequence[str]) -> dict[str, Arm]:
    return {"recipe": transform_arm(torchvision_transform(SIZE), paths)}


def torchvision_transform(size: int, augment: bool = True) -> Any:
    """torchvision's v2 transforms closest to the recipe, on Pillow images: its tensor ops have no bicubic resampling.

    Its RandAugment has other ops and one fixed magnitude.
    """
    import torch
    from torchvision.transforms import InterpolationMode, v2

    bicubic = InterpolationMode.BICUBIC
    crop = [v2.RandomResizedCrop(size, interpolation=bicubic, antialias=True), v2.RandomHorizontalFlip()]
    ops = [v2.RandAugment(num_ops=2, magnitude=9, interpolation=bicubic)] if augment else []
    erase = [v2.RandomErasing(0.25)] if augment else []
    normalise = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(CLIP_MEAN, CLIP_STD)]
    return v2.Compose([*crop, *ops, v2.ToImage(), *normalise, *erase])


def transform_arm(transform: Callable[[Any], Any], paths: Sequence[str]) -> Arm:
    """Open each image with Pillow from memory and transform it."""
    import torch
    from PIL import Image

    torch.set_num_threads(1)
    files = [Path(p).read_bytes() for p in paths]

    def run() -> int:
        for file in files:
            transform(Image.open(BytesIO(file)).convert("RGB"))
        return len(files)

    return run


def dali_recipe(paths: Sequence[str]) -> dict[str, Arm]:
    from fastft.bench.dali import recipe_pipeline

    batch = min(100, len(paths))
    pipeline = recipe_pipeline(list(paths), SIZE, batch, threads=1, prefetch=False)
    batches = len(paths) // batch

    def run() -> int:
        for _ in range(batches):
            pipeline.run()
        return batches * batch

    return {"recipe": run}


# single ops and resize -----------------------------------------------------------------------------------------------


def our_ops(paths: Sequence[str]) -> dict[str, Arm]:
    from fastft.augment import parse_policy
    from fastft.augment.levels import level_argument
    from fastft.augment.ops_image import op_scratch_size, run_op
    from fastft.augment.policies import INCREASING_OPS

    sources = [image.reshape(-1) for image in op_images(paths)] * OP_REPEATS
    target, scratch = np.empty_like(sources[0]), np.empty(op_scratch_size(SIZE, SIZE), np.uint8)
    fill = np.array(parse_policy(AUGMENT).fill, np.uint8)

    def arm(name: str) -> Arm:
        op, argument = level_argument(name, 9.0, 1, height=SIZE, width=SIZE)

        def run() -> int:
            for source in sources:
                run_op(op, argument, source, target, SIZE, SIZE, fill, True, scratch)
            return len(sources)

        return run

    return {name: arm(name) for name in INCREASING_OPS}


def pillow_ops(paths: Sequence[str]) -> dict[str, Arm]:
    """The same ops as timm calls them."""
    from PIL import Image
    from timm.data import auto_augment

    from fastft.augment import parse_policy
    from fastft.augment.policies import INCREASING_OPS

    pictures = [Image.fromarray(image) for image in op_images(paths)] * OP_REPEATS
    fill = parse_policy(AUGMENT).fill

    def arm(name: str) -> Arm:
        level = auto_augment.LEVEL_TO_ARG[name]
        arguments, function = level(9.0, {}) if level else (), auto_augment.NAME_TO_OP[name]

        def run() -> int:
            for picture in pictures:
                function(picture, *arguments, fillcolor=fill, resample=Image.Resampling.BICUBIC)
            return len(pictures)

        return run

    return {name: arm(name) for name in INCREASING_OPS}


def op_images(paths: Sequence[str]) -> list[np.ndarray]:
    from PIL import Image

    return [
        np.array(Image.open(path).convert("RGB").resize((SIZE, SIZE))) for path in list(paths)[:OP_IMAGES]
    ]


RESIZES = (f"{TYPICAL_CROP[0]} x {TYPICAL_CROP[1]}", "of a random resized crop plan")


def crops(paths: Sequence[str]) -> dict[str, list[np.ndarray]]:
    """Crops of the images at up to 500 px, by RESIZES; without the first if no image is that large."""
    from PIL import Image

    from fastft.augment import draw_plan, parse_policy

    images = []
    for path in paths:
        image = Image.open(path).convert("RGB")
        image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
        images.append(np.asarray(image))
    heights, widths = zip(*(image.shape[:2] for image in images), strict=True)
    boxes = draw_plan(
        parse_policy(AUGMENT), seed=0, epoch=0, sample_ids=np.arange(len(images)), heights=heights, widths=widths,
        size=SIZE,
    )["crop"]  # fmt: skip
    h, w = TYPICAL_CROP
    typical = [image[:h, :w] for image in images if image.shape[0] >= h and image.shape[1] >= w]
    planned = [image[y : y + h, x : x + w] for image, (y, x, h, w) in zip(images, boxes, strict=True)]
    return {name: found for name, found in zip(RESIZES, (typical, planned), strict=True) if found}


def our_resizes(paths: Sequence[str]) -> dict[str, Arm]:
    from fastft.augment.resize import resize_region, resize_scratch_size

    target, origin = (SIZE, SIZE), (0, 0)
    out = np.empty(SIZE * SIZE * 3, np.uint8)

    def arm(images: list[np.ndarray]) -> Arm:
        pixels = [np.ascontiguousarray(image).reshape(-1) for image in images]
        boxes = [(0, 0, *image.shape[:2]) for image in images]
        scratch = np.empty(max(resize_scratch_size(*image.shape[:2], SIZE) for image in images), np.uint8)

        def run() -> int:
            for flat, box in zip(pixels, boxes, strict=True):
                resize_region(flat, box[3] * 3, box, box, target, origin, False, True, SIZE, scratch, out)
            return len(pixels)

        return run

    return {name: arm(images) for name, images in crops(paths).items()}


def pillow_resizes(paths: Sequence[str]) -> dict[str, Arm]:
    from PIL import Image

    def arm(images: list[np.ndarray]) -> Arm:
        pictures = [Image.fromarray(image) for image in images]

        def run() -> int:
            for picture in pictures:
                picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
            return len(pictures)

        return run

    return {name: arm(images) for name, images in crops(paths).items()}
