"""Decoding a random crop on one core, compared with decoders for whole images and with libjpeg-turbo's lower bound."""

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from beton_tools.base.jit import njit
from beton_tools.jpeg import find_region, open_decoders
from beton_tools.jpeg.markers import OK, scan_header
from beton_tools.jpeg.turbo import decompress
from beton_tools.read.format import Beton
from fastft.augment.policies import AugmentPolicy
from fastft.bench.child import Arm
from fastft.bench.dataset import ORIGINAL, RESIZED
from fastft.bench.harness import Options
from fastft.bench.jpegs import JpegSet
from fastft.bench.measure import CPU, CPU_RATE, Figure, Plan, Row, Variant, entered
from fastft.bench.task import Entry, Pass, Task, Work
from fastft.machine.bench_result import Setting

SIZE, BATCH = 224, 64
EPOCHS = 8  # epochs of crops drawn in advance
LIMIT = "libjpeg-turbo's minimum"


def crop(options: Options) -> Iterator[Variant]:
    for files in (RESIZED, ORIGINAL):
        beton = options.workspace.beton(files)
        given = {"beton": str(beton), "folder": str(options.workspace.jpegs(files))}
        task = Task(Work.DECODE, given, SIZE, 4 if options.quick else min(BATCH, options.images), threads=1)
        kilobytes = round(float(Beton.open(beton).sizes.mean()) / 1e3, 1)
        setting: Setting = {"files": files, "kB per image": kilobytes}
        yield Variant(entered(options, task, ours=__name__), setting, {"images": options.images})


CROP = Figure(
    "decode.crop", "Decoding a random crop, one core", CPU_RATE, CPU,
    about="JPEG bytes in memory to the RGB pixels of a random resized crop's box. The minimum is libjpeg-turbo's own time for "
    "the crop's share of the bytes. No decoder reaches it, because libjpeg must begin at a row and at a marker.",
    rows=(
        Row("decoding a random crop, 500 px files", LIMIT, {"files": RESIZED}),
        Row("decoding a random crop, original files", LIMIT, {"files": ORIGINAL}),
    ),
)  # fmt: skip

# in the contender's process ------------------------------------------------------------------------------------------


def crops(task: Task) -> Pass:
    jpegs = JpegSet(Path(task.files["beton"]))
    regions = itertools.cycle([random_crops(jpegs, epoch) for epoch in range(EPOCHS)])
    scratch, handle = jpegs.scratch(), open_decoders(1)[0]

    def one_pass() -> Iterator[int]:
        if decode_all(jpegs.data, jpegs.ends, next(regions), scratch, handle):
            raise RuntimeError("an image could not be decoded, so the results would mean nothing")
        yield len(jpegs)

    return one_pass


def random_crops(jpegs: JpegSet, epoch: int) -> np.ndarray:
    """Draw boxes (N, 4) as y, x, h, w, like training's random resized crop."""
    boxes: np.ndarray = jpegs.plan(AugmentPolicy("none"), epoch, SIZE)["crop"].astype(np.int64)
    return boxes


def crop_limit(task: Task) -> dict[str, Arm]:
    """Measure a lower bound for the time: libjpeg-turbo's own time for the bytes that the crops need.

    Each image's bytes are spread over its area, and the crop's share of them counts.
    """
    jpegs = JpegSet(Path(task.files["beton"]))
    share = float(np.mean([byte_share(jpegs, random_crops(jpegs, epoch)) for epoch in range(EPOCHS)]))
    pixels, handle = np.empty(jpegs.largest_pixels, np.uint8), open_decoders(1)[0]

    def run() -> dict[str, float]:
        began = time.process_time()
        if decompress_all(jpegs.data, jpegs.ends, jpegs.heights, jpegs.widths, pixels, handle):
            raise RuntimeError("an image could not be decoded, so the limit would mean nothing")
        seconds = share * (time.process_time() - began)
        return {"count": len(jpegs), "cpu": seconds, "wall": seconds}

    return {"pass": run}


def byte_share(jpegs: JpegSet, boxes: np.ndarray) -> float:
    """Return the share of all JPEG bytes that the boxes (N, 4) need.

    Each image's bytes are taken as spread evenly over its area.
    """
    num_bytes = np.diff(jpegs.ends)
    areas = boxes[:, 2].astype(float) * boxes[:, 3] / (jpegs.heights * jpegs.widths)
    return float(num_bytes @ areas / num_bytes.sum())


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


ENTRIES = (
    Entry("fastft", "fastft", crops, {Work.DECODE: ()}),
    Entry(LIMIT, "", crop_limit, {Work.DECODE: ()}, limit=True),
)
PLANS = (Plan("decode.crop", 120, [CROP], crop),)
