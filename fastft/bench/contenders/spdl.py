"""SPDL (facebookresearch.github.io/spdl): FFmpeg decodes, crops and resizes in a filter, in a pipeline with threads."""

import math
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fastft.bench.child import NotInstalled, library
from fastft.bench.task import RATIO, SCALE, Entry, Pass, Task, Work
from fastft.recipe.constants import CLIP_MEAN, CLIP_STD

AHEAD = 3  # batches in the buffer, as in SPDL's examples


def make(task: Task) -> Pass:
    """Follow SPDL's ImageNet example: paths to batches, `threads` images at a time."""
    io, pipeline = library("spdl.io", "spdl"), library("spdl.pipeline", "spdl")
    paths = [str(path) for path in task.paths] * task.repeat
    try:
        io.demux_image(paths[0])
    except RuntimeError as error:  # the pipeline only logs errors and skips their images
        if "libspdl" in str(error):
            raise NotInstalled("apt-get install ffmpeg") from None
        raise
    scale = (1 / (255 * np.array(CLIP_STD))).astype(np.float32)
    shift = (-np.array(CLIP_MEAN) / np.array(CLIP_STD)).astype(np.float32)

    def load(path: str) -> Any:
        packets = io.demux_image(path)
        return io.decode_packets(packets, filter_desc=random_crop(task.size))

    def collate(frames: Sequence[Any]) -> Any:
        pixels = io.to_numpy(io.convert_frames(frames))
        return pixels * scale + shift

    def one_pass() -> Iterator[int]:
        order = random.sample(paths, len(paths))
        builder = pipeline.PipelineBuilder().add_source(order).pipe(load, concurrency=task.threads)
        builder = builder.aggregate(task.batch, drop_last=True).pipe(collate).add_sink(AHEAD)
        with (built := builder.build(num_threads=task.threads)).auto_stop():
            for batch in built:
                yield len(batch)

    return one_pass


def random_crop(size: int) -> str:
    """Return FFmpeg's filters for a random resized crop and flip. Only FFmpeg knows the file's own size."""
    area, ratio = random.uniform(*SCALE), math.exp(random.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
    w, h = (f"min({side}\\,sqrt({area:.5f}*iw*ih{by}{ratio:.5f}))" for side, by in (("iw", "*"), ("ih", "/")))
    crop = f"crop=w={w}:h={h}:x=(iw-ow)*{random.random():.5f}:y=(ih-oh)*{random.random():.5f}"
    flip = ",hflip" if random.random() < 0.5 else ""
    return f"{crop},scale={size}:{size}:flags=bicubic{flip},format=pix_fmts=rgb24"


ENTRIES = (Entry("SPDL", "spdl", make, {Work.CROP: ("FFmpeg's decoder and bicubic resize",)}),)
