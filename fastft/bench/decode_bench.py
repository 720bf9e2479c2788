"""Decoding a random crop on one core, compared with decoders for whole images and with libjpeg-turbo's lower bound."""

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from beton_tools.base.jit import njit
from beton_tools.jpeg import find_region, open_decoders
from beton_tools.jpeg.markers import OK, scan_header
from beton_tools.jpeg.turbo import decompress
from beton_tools.read.format import Beton
from fastft.augment.draw import draw_plan
from fastft.augment.policies import AugmentPolicy
from fastft.bench.child import Arm, library
from fastft.bench.contenders import dali as dali_loader
from fastft.bench.contenders.jpegs import JpegSet
from fastft.bench.contenders.task import RATIO, SCALE
from fastft.bench.dataset import ORIGINAL, RESIZED
from fastft.bench.harness import Contender, Findings, Options, Planned, alternate, case, per_cpu_second
from fastft.machine.bench_result import Measure

SIZE, BATCH = 224, 64
PLANS = 8  # epochs of crops drawn in advance
WHOLE = ("decodes the whole image",)
LIMIT = "libjpeg-turbo's minimum"


def crop(options: Options) -> Findings:
    cases = []
    for files in (RESIZED, ORIGINAL):
        beton = Beton.open(options.workspace.beton(files))
        rounds = alternate(contenders(options, files), options.rounds, threads=1)
        kilobytes = round(float(beton.sizes.mean()) / 1e3, 1)
        cases.append(case(rounds, "decode", per_cpu_second, {"files": files, "kB per image": kilobytes}))
    about = (
        "JPEG bytes in memory to the RGB pixels of a random resized crop's box. The minimum is libjpeg-turbo's own time for the "
        "crop's share of the bytes. No decoder reaches it, because libjpeg must begin at a row and at a marker."
    )
    yield Measure(
        key="decode.crop", bench="decode", title="Decoding a random crop, one core", unit="images per CPU second", about=about,
        cases=cases, setting={"images": options.images, "rounds": options.rounds},
    )  # fmt: skip


def contenders(options: Options, files: str) -> list[Contender]:
    path, folder = {"path": str(options.workspace.beton(files))}, {"folder": str(options.workspace.jpegs(files))}
    batch = 4 if options.quick else min(BATCH, options.images)
    groups = {
        "fastft": [Contender("fastft", crops, path, package="fastft"), Contender(LIMIT, crop_limit, path, limit=True)],
        "ffcv": [
            Contender("stock FFCV", ffcv, {**path, "batch": batch}, ("with its resize to 224", "fast DCT"), "ffcv")
        ],
        "torchvision": [Contender("torchvision", peer, {**folder, "name": "torchvision"}, WHOLE, "torchvision")],
        "simplejpeg": [
            Contender("simplejpeg", peer, {**folder, "name": "simplejpeg"}, WHOLE, "simplejpeg"),
            Contender("OpenCV", peer, {**folder, "name": "opencv"}, WHOLE, "opencv-python"),
        ],
        "timm": [Contender("Pillow", peer, {**folder, "name": "pillow"}, WHOLE, "pillow")],
        "dali": [Contender("DALI CPU", dali, {**folder, "batch": batch}, (), dali_loader.PACKAGE)],
    }
    return options.wanted(groups)


MEASURES = (Planned("decode.crop", crop, 120),)

# in the contender's process ------------------------------------------------------------------------------------------


def crops(path: str) -> dict[str, Arm]:
    jpegs = JpegSet(Path(path))
    regions = itertools.cycle([random_crops(jpegs, epoch) for epoch in range(PLANS)])
    scratch, handle = jpegs.scratch(), open_decoders(1)[0]

    def run() -> int:
        if decode_all(jpegs.data, jpegs.ends, next(regions), scratch, handle):
            raise RuntimeError("an image could not be decoded, so the results would mean nothing")
        return len(jpegs)

    return {"decode": run}


def random_crops(jpegs: JpegSet, epoch: int) -> np.ndarray:
    """Draw boxes (N, 4) as y, x, h, w, like training's random resized crop."""
    plan = draw_plan(
        AugmentPolicy("none"), seed=0, epoch=epoch, sample_ids=np.arange(len(jpegs)), heights=jpegs.heights,
        widths=jpegs.widths, size=SIZE,
    )  # fmt: skip
    boxes: np.ndarray = plan["crop"].astype(np.int64)
    return boxes


def crop_limit(path: str) -> dict[str, Arm]:
    """Measure a lower bound for the time: libjpeg-turbo's own time for the bytes that the crops need.

    Each image's bytes are spread over its area, and the crop's share of them counts.
    """
    jpegs = JpegSet(Path(path))
    share = float(np.mean([byte_share(jpegs, random_crops(jpegs, epoch)) for epoch in range(PLANS)]))
    pixels, handle = np.empty(jpegs.largest_pixels, np.uint8), open_decoders(1)[0]

    def run() -> dict[str, float]:
        began = time.process_time()
        if decompress_all(jpegs.data, jpegs.ends, jpegs.heights, jpegs.widths, pixels, handle):
            raise RuntimeError("an image could not be decoded, so the limit would mean nothing")
        seconds = share * (time.process_time() - began)
        return {"count": len(jpegs), "cpu": seconds, "wall": seconds}

    return {"decode": run}


def byte_share(jpegs: JpegSet, boxes: np.ndarray) -> float:
    """Return the share of all JPEG bytes that the boxes (N, 4) need.

    Each image's bytes are taken as spread evenly over its area.
    """
    num_bytes = np.diff(jpegs.ends)
    areas = boxes[:, 2].astype(float) * boxes[:, 3] / (jpegs.heights * jpegs.widths)
    return float(num_bytes @ areas / num_bytes.sum())


def ffcv(path: str, batch: int) -> dict[str, Arm]:
    """Run stock FFCV through its Loader."""
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import ToTensor

    decoder = RandomResizedCropRGBImageDecoder((SIZE, SIZE), SCALE, RATIO)
    loader = Loader(
        path, batch, num_workers=1, order=OrderOption.RANDOM, drop_last=False,
        pipelines={"image": [decoder, ToTensor()], "label": None},
    )  # fmt: skip
    return {"decode": lambda: sum(len(images) for (images,) in loader)}


def peer(folder: str, name: str) -> dict[str, Arm]:
    """Decode whole images to RGB from memory."""
    files = [path.read_bytes() for path in sorted(Path(folder).glob("*/*"))]
    decode = DECODERS[name]()

    def run() -> int:
        for file in files:
            decode(file)
        return len(files)

    return {"decode": run}


def _torchvision() -> Callable[[bytes], Any]:
    import torch

    from fastft.bench.contenders.torchvision import decode_bytes

    torch.set_num_threads(1)
    return lambda file: decode_bytes(torch.frombuffer(bytearray(file), dtype=torch.uint8))


def _simplejpeg() -> Callable[[bytes], Any]:
    decode = library("simplejpeg", "simplejpeg").decode_jpeg
    return lambda file: decode(file, "RGB")


def _opencv() -> Callable[[bytes], Any]:
    cv2 = library("cv2", "opencv-python")
    cv2.setNumThreads(0)
    return lambda file: cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR_RGB)


def _pillow() -> Callable[[bytes], Any]:
    from io import BytesIO

    from PIL import Image

    return lambda file: Image.open(BytesIO(file)).convert("RGB")


DECODERS = {"torchvision": _torchvision, "simplejpeg": _simplejpeg, "opencv": _opencv, "pillow": _pillow}


def dali(folder: str, batch: int) -> dict[str, Arm]:
    """Run DALI's fused decode and random crop, without prefetch, which does not help on one core."""
    nvidia, fn = (library(f"nvidia.dali{part}", dali_loader.PACKAGE) for part in ("", ".fn"))
    paths = [str(p) for p in sorted(Path(folder).glob("*/*"))]

    @nvidia.pipeline_def(batch_size=batch, num_threads=1, device_id=None, exec_async=False, exec_pipelined=False)
    def decode() -> object:
        encoded, _ = fn.readers.file(files=paths, shuffle_after_epoch=False)
        return fn.decoders.image_random_crop(
            encoded, device="cpu", random_area=list(SCALE), random_aspect_ratio=list(RATIO)
        )

    pipeline = decode()
    pipeline.build()
    batches = len(paths) // batch

    def run() -> int:
        for _ in range(batches):
            pipeline.run()
        return batches * batch

    return {"decode": run}


# compiled, with many images per call, so that no contender pays for Python


@njit(nogil=True)
def decode_all(data: np.ndarray, ends: np.ndarray, regions: np.ndarray, scratch: np.ndarray, handle: int) -> int:
    """Decode a region from every image, and return the number of failures."""
    failures = 0
    for k in range(len(regions)):
        jpeg = data[ends[k] : ends[k + 1]]
        head = scan_header(jpeg)
        y, x, h, w = regions[k, 0], regions[k, 1], regions[k, 2], regions[k, 3]
        failures += head.code != OK or find_region(jpeg, head, y, x, h, w, scratch, handle)[0] != OK
    return failures


@njit(nogil=True)
def decompress_all(
    data: np.ndarray, ends: np.ndarray, heights: np.ndarray, widths: np.ndarray, pixels: np.ndarray, handle: int
) -> int:  # fmt: skip
    """Decode every whole image with libjpeg-turbo alone, and return the number of failures."""
    failures = 0
    for k in range(len(heights)):
        jpeg = data[ends[k] : ends[k + 1]]
        failures += decompress(handle, jpeg.ctypes.data, jpeg.size, pixels.ctypes.data, heights[k], widths[k]) != OK
    return failures
