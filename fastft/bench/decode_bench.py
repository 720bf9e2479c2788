"""Decoding a random crop on one core, compared with decoders for whole images and with libjpeg-turbo's lower bound."""

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from beton_tools.base.jit import njit
from beton_tools.jpeg import find_region, open_decoders, scratch_bytes
from beton_tools.jpeg.markers import OK, scan_header
from beton_tools.jpeg.turbo import decompress
from beton_tools.read.format import Beton
from fastft.augment.draw import draw_plan
from fastft.augment.policies import AugmentPolicy
from fastft.bench.child import Arm
from fastft.bench.dataset import ORIGINAL, RESIZED
from fastft.bench.harness import Options
from fastft.bench.loader_bench import SIZE, loader_task
from fastft.bench.measure import CPU, CPU_RATE, Figure, Plan, Row, Variant, entered
from fastft.bench.task import Entry, Pass, Task, Work
from fastft.machine.bench_result import Setting

EPOCHS = 8  # epochs of crops drawn in advance
LIMIT = "libjpeg-turbo's minimum"
UNDECODED = "an image could not be decoded, so the results would mean nothing"


def crop(options: Options) -> Iterator[Variant]:
    for files in (RESIZED, ORIGINAL):
        task = loader_task(options, Work.DECODE, files, repeat=1)
        kilobytes = round(float(Beton.open(Path(task.files["beton"])).sizes.mean()) / 1e3, 1)
        setting: Setting = {"files": files, "kB per image": kilobytes}
        yield Variant(entered(options, task, ours=__name__), setting, {"images": options.images})


CROP = Figure(
    "decode.crop", "Decoding a random crop, one core", CPU_RATE, CPU,
    about="JPEG bytes in memory to the RGB pixels of a random resized crop's box. The minimum is libjpeg-turbo's own time for "
    "the crop's share of the bytes. No decoder reaches it, because libjpeg must begin at a row and at a marker.",
    rows=(
        Row("decoding a random crop, 500 px files", LIMIT, {"files": RESIZED}),
        Row("decoding a random crop, original files", LIMIT, {"files": ORIGINAL}),
        Row("the same", "nvImageCodec CPU", {"files": ORIGINAL}),
        Row("the same", "torchcodec", {"files": ORIGINAL}),
    ),
)  # fmt: skip

# in the contender's process ------------------------------------------------------------------------------------------


class JpegSet:
    """All images one after another in `data`, image k from ends[k] to ends[k + 1]. heights, widths: (N,) int64."""

    def __init__(self, path: Path) -> None:
        beton = Beton.open(path)
        self.data = np.concatenate([beton.image_bytes(k) for k in range(beton.num_samples)])
        self.ends = np.concatenate([[0], np.cumsum(beton.sizes)]).astype(np.int64)
        self.heights, self.widths = (beton.image_column[side].astype(np.int64) for side in ("height", "width"))

    def plan(self, policy: AugmentPolicy, epoch: int, size: int) -> np.ndarray:
        """Draw an epoch's plan for the images in their order, (N,)."""
        ids = np.arange(len(self))
        return draw_plan(
            policy, seed=0, epoch=epoch, sample_ids=ids, heights=self.heights, widths=self.widths, size=size
        )

    def __len__(self) -> int:
        return len(self.heights)

    def scratch(self) -> np.ndarray:
        """Memory for find_region."""
        largest = int(np.diff(self.ends).max())
        return np.empty(scratch_bytes(int(self.heights.max()), int(self.widths.max()), largest), np.uint8)


def crops(task: Task) -> Pass:
    jpegs = JpegSet(Path(task.files["beton"]))
    regions = itertools.cycle([random_crops(jpegs, epoch) for epoch in range(EPOCHS)])
    scratch, handle = jpegs.scratch(), open_decoders(1)[0]

    def one_pass() -> Iterator[int]:
        decode_all(jpegs.data, jpegs.ends, next(regions), scratch, handle)
        yield len(jpegs)

    return one_pass


def random_crops(jpegs: JpegSet, epoch: int) -> np.ndarray:
    """Draw boxes (N, 4) as y, x, h, w, like training's random resized crop."""
    boxes: np.ndarray = jpegs.plan(AugmentPolicy("none"), epoch, SIZE)["crop"].astype(np.int64)
    return boxes


def crop_limit(task: Task) -> dict[str, Arm]:
    """Measure a lower bound for the time: libjpeg-turbo's own time for the bytes that the crops need.

    Each image's bytes are taken as spread evenly over its area, and the crop's share of them counts.
    """
    jpegs = JpegSet(Path(task.files["beton"]))
    num_bytes, area = np.diff(jpegs.ends), jpegs.heights * jpegs.widths
    boxes = [random_crops(jpegs, epoch).astype(float) for epoch in range(EPOCHS)]
    share = float(np.mean([num_bytes @ (box[:, 2] * box[:, 3] / area) for box in boxes]) / num_bytes.sum())
    pixels, handle = np.empty(3 * int(area.max()), np.uint8), open_decoders(1)[0]

    def run() -> dict[str, float]:
        began = time.process_time()
        decompress_all(jpegs.data, jpegs.ends, jpegs.heights, jpegs.widths, pixels, handle)
        seconds = share * (time.process_time() - began)
        return {"count": len(jpegs), "cpu": seconds, "wall": seconds}

    return {"pass": run}


# compiled, with many images per call, so that no contender pays for Python


@njit(nogil=True)
def decode_all(data: np.ndarray, ends: np.ndarray, regions: np.ndarray, scratch: np.ndarray, handle: int) -> None:
    """Decode a region from every image."""
    for k in range(len(regions)):
        jpeg = data[ends[k] : ends[k + 1]]
        head = scan_header(jpeg)
        y, x, h, w = regions[k, 0], regions[k, 1], regions[k, 2], regions[k, 3]
        if head.code != OK or find_region(jpeg, head, y, x, h, w, scratch, handle)[0] != OK:
            raise RuntimeError(UNDECODED)


@njit(nogil=True)
def decompress_all(
    data: np.ndarray, ends: np.ndarray, heights: np.ndarray, widths: np.ndarray, pixels: np.ndarray, handle: int
) -> None:  # fmt: skip
    """Decode every whole image with libjpeg-turbo alone."""
    for k in range(len(heights)):
        jpeg = data[ends[k] : ends[k + 1]]
        if decompress(handle, jpeg.ctypes.data, jpeg.size, pixels.ctypes.data, heights[k], widths[k]) != OK:
            raise RuntimeError(UNDECODED)


ENTRIES = (
    Entry("fastft", "fastft", crops, {Work.DECODE: ()}),
    Entry(LIMIT, "", crop_limit, {Work.DECODE: ()}, limit=True),
)
PLANS = (Plan("decode.crop", 120, [CROP], crop),)
