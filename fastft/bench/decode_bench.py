"""Decoding only the crop, compared with decoding whole images.

FFCV's decoder cannot be told not to resize, and takes the fast, less exact DCT; ours gives Pillow's pixels.
"""

import itertools
import time
from functools import partial
from pathlib import Path

import numpy as np
from numba import njit

from beton_tools.jpeg import decode_region, open_decoders, scratch_bytes
from beton_tools.jpeg.turbo import decompress
from beton_tools.read.format import Beton
from fastft.augment import draw_plan, parse_policy
from fastft.bench.child import Arm, calling, library
from fastft.bench.dataset import ORIGINAL, SETS
from fastft.bench.harness import LIMIT, Contender, Findings, Options, alternate, measure, per_cpu_second
from fastft.bench.loaders import DALI

OUTPUT = 224
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
BATCH = 256
PLANS = 8  # epochs of crops, drawn in advance


def run(options: Options) -> Findings:
    """One measure per set of files."""
    for name in SETS:
        beton = Beton.open(options.workspace.beton(name))
        rounds = alternate(contenders(options, name), options.rounds, threads=1)
        setting = {"files": name, "images": options.images, "kB per image": round(beton.sizes.mean() / 1e3, 1)}
        yield measure("Crop decode", rounds, "decode", per_cpu_second, "images/s per core", setting)


def contenders(options: Options, name: str) -> list[Contender]:
    path = {"path": str(options.workspace.beton(name))}
    groups = {
        "fastft": [
            Contender("fastft", crops, path, "only the crop"),
            Contender("whole image, same decoder", whole, path),
            Contender(LIMIT, crop_limit, path, "libjpeg-turbo's time for the crop's share of the bytes"),
        ],
        "ffcv": [Contender("stock FFCV Loader", ffcv_loader, path, "with its resize to 224")],
    }
    if name == ORIGINAL:
        files = {"paths": [str(p) for p in options.workspace.images.paths]}
        groups["dali"] = [Contender("DALI image_random_crop", dali, files, "on the original files")]
        groups["torchvision"] = [Contender("torchvision decode_jpeg", torchvision, files, "whole, the original files")]
    return options.wanted(groups)


class JpegSet:
    """The JPEGs of a .beton in memory."""

    def __init__(self, path: Path) -> None:
        beton = Beton.open(path)
        self.data = np.concatenate([beton.image_bytes(k) for k in range(beton.num_samples)])
        self.ends = np.concatenate([[0], np.cumsum(beton.sizes)]).astype(np.int64)
        self.shapes = [beton.image_column[side].astype(np.int64) for side in ("height", "width")]

    def __len__(self) -> int:
        return len(self.ends) - 1


def crops(path: str) -> dict[str, Arm]:
    jpegs = JpegSet(Path(path))
    return {"decode": region_arm(jpegs, [random_crops(jpegs, epoch) for epoch in range(PLANS)])}


def whole(path: str) -> dict[str, Arm]:
    jpegs = JpegSet(Path(path))
    zero = np.zeros(len(jpegs), np.int64)
    return {"decode": region_arm(jpegs, [np.stack([zero, zero, *jpegs.shapes], axis=1)])}


def random_crops(jpegs: JpegSet, epoch: int) -> np.ndarray:
    """Boxes (N, 4) as y, x, h, w, those of training's random resized crop."""
    heights, widths = jpegs.shapes
    ids, policy = np.arange(len(jpegs)), parse_policy("none")
    plan = draw_plan(policy, seed=0, epoch=epoch, sample_ids=ids, heights=heights, widths=widths, size=OUTPUT)
    return plan["crop"].astype(np.int64)


def region_arm(jpegs: JpegSet, plans: list[np.ndarray]) -> Arm:
    """An arm that decodes the regions (N, 4) of one plan per round into the packed buffer of a batch."""
    heights, widths = jpegs.shapes
    scratch = np.empty(scratch_bytes(heights.max(), widths.max(), int(np.diff(jpegs.ends).max())), np.uint8)
    largest = 3 * int((heights * widths).max())
    packed = np.empty(max(largest, 3 * BATCH * int((heights * widths).mean())), np.uint8)
    handle, next_plan = open_decoders(1)[0], itertools.cycle(plans)

    def run() -> int:
        regions = next(next_plan)
        offsets = packed_offsets(regions, packed.size)
        if decode_all(jpegs.data, jpegs.ends, regions, offsets, packed, scratch, handle):
            raise RuntimeError("an image could not be decoded: the figures would mean nothing")
        return len(regions)

    return run


def packed_offsets(regions: np.ndarray, capacity: int) -> np.ndarray:
    """Offset of each region in the packed buffer: after the previous one, or at the start again."""
    offsets, end = np.zeros(len(regions), np.int64), 0
    for k, size in enumerate(3 * regions[:, 2] * regions[:, 3]):
        offsets[k] = end if end + size <= capacity else 0
        end = offsets[k] + size
    return offsets


def crop_limit(path: str) -> dict[str, Arm]:
    """A lower bound of the time: libjpeg-turbo's own for the bytes of the crops' share of each image, spread over its area."""
    jpegs = JpegSet(Path(path))
    share = float(np.mean([byte_share(jpegs, random_crops(jpegs, epoch)) for epoch in range(PLANS)]))
    heights, widths = jpegs.shapes
    pixels, handle = np.empty(3 * int((heights * widths).max()), np.uint8), open_decoders(1)[0]

    def run() -> dict[str, float]:
        began = time.process_time()
        if decompress_all(jpegs.data, jpegs.ends, heights, widths, pixels, handle):
            raise RuntimeError("an image could not be decoded: the limit would mean nothing")
        seconds = share * (time.process_time() - began)
        return {"count": len(jpegs), "cpu": seconds, "wall": seconds}

    return {"decode": run}


def byte_share(jpegs: JpegSet, regions: np.ndarray) -> float:
    """Share of all JPEG bytes that the regions (N, 4) of y, x, h, w need, each image's bytes spread evenly over its area."""
    num_bytes, (heights, widths) = np.diff(jpegs.ends), jpegs.shapes
    areas = regions[:, 2].astype(float) * regions[:, 3] / (heights * widths)
    return float(num_bytes @ areas / num_bytes.sum())


def ffcv_loader(path: str) -> dict[str, Arm]:
    """Stock FFCV, driven through its Loader."""
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import ToTensor

    decoder = RandomResizedCropRGBImageDecoder((OUTPUT, OUTPUT), SCALE, RATIO)
    loader = Loader(
        path, BATCH, num_workers=1, order=OrderOption.RANDOM, drop_last=False,
        pipelines={"image": [decoder, ToTensor()], "label": None},
    )  # fmt: skip
    return {"decode": lambda: sum(len(images) for (images,) in loader)}


def dali(paths: list[str]) -> dict[str, Arm]:
    """DALI's fused decode and random crop, without prefetch, which does not help on one core."""
    nvidia, fn = library("nvidia.dali", DALI), library("nvidia.dali.fn", DALI)
    batch = min(100, len(paths))

    @nvidia.pipeline_def(batch_size=batch, num_threads=1, device_id=None, exec_async=False, exec_pipelined=False)
    def decode() -> object:
        encoded, _ = fn.readers.file(files=paths, shuffle_after_epoch=False)
        return fn.decoders.image_random_crop(
            encoded, device="cpu", random_area=list(SCALE), random_aspect_ratio=list(RATIO)
        )

    pipeline = decode()
    pipeline.build()
    return {"decode": calling([pipeline.run] * (len(paths) // batch), batch)}


def torchvision(paths: list[str]) -> dict[str, Arm]:
    """torchvision: whole decode of the original files, from memory."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    files = [torch.frombuffer(bytearray(Path(p).read_bytes()), dtype=torch.uint8) for p in paths]
    return {"decode": calling(partial(decode_jpeg, file, mode=ImageReadMode.RGB) for file in files)}


# compiled: many images per call, so that no contender pays for Python


@njit(cache=True, nogil=True)
def decode_all(
    data: np.ndarray, ends: np.ndarray, regions: np.ndarray, offsets: np.ndarray,
    packed: np.ndarray, scratch: np.ndarray, handle: int,
) -> int:  # fmt: skip
    """Decode a region of every image into the packed buffer; returns the number of failures."""
    failures = 0
    for k in range(len(regions)):
        y, x, h, w = regions[k, 0], regions[k, 1], regions[k, 2], regions[k, 3]
        out = packed[offsets[k] : offsets[k] + 3 * h * w]
        failures += decode_region(data[ends[k] : ends[k + 1]], y, x, h, w, out, scratch, handle) != 0
    return failures


@njit(cache=True, nogil=True)
def decompress_all(
    data: np.ndarray, ends: np.ndarray, heights: np.ndarray, widths: np.ndarray, pixels: np.ndarray, handle: int
) -> int:  # fmt: skip
    """Decode every image whole, by libjpeg-turbo alone; returns the number of failures."""
    failures = 0
    for k in range(len(heights)):
        jpeg = data[ends[k] : ends[k + 1]]
        status = decompress(handle, jpeg.ctypes.data, jpeg.size, pixels.ctypes.data, heights[k], widths[k])
        failures += status != 0
    return failures
