"""DALI on CPU or GPU (docs.nvidia.com/deeplearning/dali): decoding fused with the crop, automatic RandAugment."""

from collections.abc import Iterator
from typing import Any

from fastft.bench.child import library
from fastft.bench.task import ERASE, RATIO, SCALE, Entry, Pass, Task, Work
from fastft.recipe.constants import CLIP_MEAN, CLIP_STD

PACKAGE = "nvidia-dali-cuda120"
PREFETCH = 2  # batches in progress; DALI's default
OTHER = "other RandAugment: one magnitude"


def make(task: Task) -> Pass:
    """Use the default prefetch of two batches. None is computed outside the pass."""
    paths = [str(path) for path in task.paths] * task.repeat
    pipeline = build(paths, task)

    def one_pass() -> Iterator[int]:
        batches = len(paths) // task.batch
        for started in range(batches + PREFETCH):
            if started < batches:
                pipeline.schedule_run()
            if started >= PREFETCH:
                pipeline.share_outputs()
                yield task.batch
                pipeline.release_outputs()

    return one_pass


def build(paths: list[str], task: Task, prefetch: bool = True) -> Any:
    """Build the pipeline: decode and crop, bicubic resize, flip, RandAugment, and an erase as close as DALI has it.

    RandAugment is drawn for each sample by conditionals.
    """
    parts = ("", ".fn", ".types", ".auto_aug.rand_augment")
    dali, fn, types, rand_augment = (library(f"nvidia.dali{part}", PACKAGE) for part in parts)
    size, gpu = task.size, task.device != "cpu"

    @dali.pipeline_def(
        batch_size=task.batch, num_threads=task.threads, device_id=0 if gpu else None, enable_conditionals=True, seed=0,
        exec_async=prefetch, exec_pipelined=prefetch, prefetch_queue_depth=PREFETCH if prefetch else 1,
    )  # fmt: skip
    def pipeline() -> Any:
        encoded, labels = fn.readers.file(files=paths, shuffle_after_epoch=True)
        images = fn.decoders.image_random_crop(
            encoded, device="mixed" if gpu else "cpu", random_area=list(SCALE), random_aspect_ratio=list(RATIO)
        )
        images = fn.resize(images, size=[size, size], interp_type=types.INTERP_CUBIC, antialias=True)
        images = fn.flip(images, horizontal=fn.random.coin_flip(probability=0.5))
        if task.work in (Work.RECIPE, Work.MEMORY):
            images = rand_augment.rand_augment(images, n=2, m=9, fill_value=128)
        mean, std = [255 * m for m in CLIP_MEAN], [255 * s for s in CLIP_STD]
        images = fn.crop_mirror_normalize(images, mean=mean, std=std, output_layout="HWC")
        if task.work in (Work.RECIPE, Work.MEMORY) and fn.random.coin_flip(probability=ERASE, dtype=types.BOOL):
            shape = fn.random.uniform(range=[0.15, 0.6], shape=[2])
            anchor = fn.random.uniform(range=[0.0, 0.4], shape=[2])
            images = fn.erase(images, anchor=anchor, shape=shape, normalized=True, axis_names="HW")
        return images, labels

    built = pipeline()
    built.build()
    return built


def in_turn(task: Task) -> Pass:
    """Run DALI's fused decode and random crop, or the whole recipe, without prefetch, which does not help on one core."""
    paths = [str(path) for path in task.paths]
    pipeline = build_decoder(paths, task.batch) if task.work == Work.DECODE else build(paths, task, prefetch=False)

    def one_pass() -> Iterator[int]:
        for _ in range(len(paths) // task.batch):
            pipeline.run()
            yield task.batch

    return one_pass


def build_decoder(paths: list[str], batch: int) -> Any:
    dali, fn = (library(f"nvidia.dali{part}", PACKAGE) for part in ("", ".fn"))

    @dali.pipeline_def(batch_size=batch, num_threads=1, device_id=None, exec_async=False, exec_pipelined=False)
    def decode() -> object:
        encoded, _ = fn.readers.file(files=paths, shuffle_after_epoch=False)
        area, ratio = list(SCALE), list(RATIO)
        return fn.decoders.image_random_crop(encoded, device="cpu", random_area=area, random_aspect_ratio=ratio)

    pipeline = decode()
    pipeline.build()
    return pipeline


ENTRIES = (
    Entry("DALI CPU", PACKAGE, make, {Work.RECIPE: (OTHER,), Work.CROP: ()}),
    Entry("DALI CPU", PACKAGE, in_turn, {Work.MEMORY: (OTHER,), Work.DECODE: ()}),
    Entry("DALI GPU", PACKAGE, make, {Work.RECIPE: (OTHER,)}, gpu=True),
)
