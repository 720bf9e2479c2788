"""Bytes that the training loader moves per image, counted from what its code does.

Two kinds. Streams pass through the machine's memory on every machine: the stored bytes that `pread` copies from the page
cache, and the finished batch, which is far larger than any cache. Scratch is what a thread overwrites for every image; it
stays in the core's cache if the cache is large enough, and adds to the streams if it is not.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from beton_tools.read.format import Beton
from fastft.augment import draw_plan, parse_policy, source_regions
from fastft.augment.plan import OPS
from fastft.bench.limits import CHANNELS

FLOAT_BYTES = 4
WRITE = 2  # a store to a line outside the caches first reads the line: two transfers per byte


@dataclass(frozen=True)
class ImageShape:
    """Means over a file's images and an epoch's plans."""

    stored: float  # bytes of the JPEG
    region: float  # bytes of the decoded region
    share: float  # of the JPEG's bytes that lie in the region
    region_rows: float
    ops: float  # that change the image, per image
    size: int  # output pixels per side

    @property
    def image(self) -> int:
        """Bytes of an output image as uint8."""
        return CHANNELS * self.size**2


@dataclass(frozen=True)
class Transfer:
    """Bytes per image that one step reads or writes."""

    what: str
    bytes: float
    stream: bool  # through memory on every machine; otherwise scratch


def image_shape(path: Path, policy: str, size: int) -> ImageShape:
    """Measure a `.beton`'s images and the plans of its first epoch."""
    beton = Beton.open(path)
    heights, widths = (beton.image_column[side].astype(np.int64) for side in ("height", "width"))
    ids = np.arange(beton.num_samples)
    plan = draw_plan(
        parse_policy(policy), seed=0, epoch=0, sample_ids=ids, heights=heights, widths=widths, size=size
    )
    regions = source_regions(plan, size).astype(float)
    areas = regions[:, 2] * regions[:, 3]
    return ImageShape(
        stored=float(beton.sizes.mean()),
        region=CHANNELS * float(areas.mean()),
        share=float(beton.sizes @ (areas / (heights * widths)) / beton.sizes.sum()),
        region_rows=float(regions[:, 2].mean()),
        ops=float((plan["op"] != OPS.index("Identity")).sum() / len(plan)),
        size=size,
    )


def cpu_augmented(shape: ImageShape, consumed: bool = True) -> list[Transfer]:
    """Transfers of an image that `CpuStage` makes: normalised float32.

    consumed: whether anything reads the batch, as training does and a benchmark of the loader does not.
    """
    image, output = shape.image, FLOAT_BYTES * shape.image
    transfers = [
        *_decoding(shape),
        Transfer("decoded region, written and resized", 2 * shape.region, stream=False),
        Transfer("rows after the first pass", 2 * shape.region_rows * CHANNELS * shape.size, stream=False),
        Transfer("resized image, written and normalised", 2 * image, stream=False),
        Transfer("augmentation ops", 2 * shape.ops * image, stream=False),
        Transfer("batch, written", WRITE * output, stream=True),
    ]
    return (
        [*transfers, Transfer("batch, read by the consumer", output, stream=True)] if consumed else transfers
    )


def gpu_augmented(shape: ImageShape) -> list[Transfer]:
    """Transfers of an image that `PackedStage` makes: the region's uint8 pixels, copied to the GPU."""
    return [
        *_decoding(shape),
        Transfer("decoded region, written to the batch", WRITE * shape.region, stream=True),
        Transfer("batch, read by the copy to the GPU", shape.region, stream=True),
    ]


def _decoding(shape: ImageShape) -> list[Transfer]:
    return [
        Transfer("stored bytes, read from the page cache", shape.stored, stream=True),
        Transfer("stored bytes, copied by pread", shape.stored, stream=False),
        Transfer("JPEG of the crop, cut out and decoded", 3 * shape.share * shape.stored, stream=False),
    ]


def stream_bytes(transfers: list[Transfer]) -> float:
    """Bytes through memory if the scratch stays in cache."""
    return sum(t.bytes for t in transfers if t.stream)


def all_bytes(transfers: list[Transfer]) -> float:
    """Bytes through memory if nothing stays in cache."""
    return sum(t.bytes for t in transfers)
