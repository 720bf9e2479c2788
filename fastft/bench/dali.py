"""DALI pipelines, as in its documentation."""

from typing import Any

from fastft.bench.child import library

PACKAGE = "nvidia-dali-cuda120"
PREFETCH = 2  # batches in progress, DALI's default


def recipe_pipeline(
    paths: list[str],
    size: int,
    batch: int,
    *,
    threads: int,
    prefetch: bool = True,
    augment: bool = True,
    gpu: bool = False,
) -> Any:
    """Fused decode and crop, bicubic resize, flip, and with `augment` RandAugment and erase; optionally on the GPU.

    It draws RandAugment's ops for each sample, by conditionals; one fixed magnitude, and erase is its nearest.
    """
    dali, fn, types = (library(f"nvidia.dali{part}", PACKAGE) for part in ("", ".fn", ".types"))
    rand_augment = library("nvidia.dali.auto_aug.rand_augment", PACKAGE)
    from fastft.recipe.constants import CLIP_MEAN, CLIP_STD

    @dali.pipeline_def(
        batch_size=batch, num_threads=threads, device_id=0 if gpu else None, enable_conditionals=True, seed=0,
        exec_async=prefetch, exec_pipelined=prefetch, prefetch_queue_depth=PREFETCH if prefetch else 1,
    )  # fmt: skip
    def recipe() -> Any:
        encoded, labels = fn.readers.file(files=paths, shuffle_after_epoch=True)
        images = fn.decoders.image_random_crop(
            encoded, device="mixed" if gpu else "cpu", random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3]
        )  # fmt: skip
        images = fn.resize(images, size=[size, size], interp_type=types.INTERP_CUBIC, antialias=True)
        images = fn.flip(images, horizontal=fn.random.coin_flip(probability=0.5))
        if augment:
            images = rand_augment.rand_augment(images, n=2, m=9, fill_value=128)
        mean, std = [255 * m for m in CLIP_MEAN], [255 * s for s in CLIP_STD]
        images = fn.crop_mirror_normalize(images, mean=mean, std=std, output_layout="HWC")
        if augment and fn.random.coin_flip(probability=0.25, dtype=types.BOOL):
            shape = fn.random.uniform(range=[0.15, 0.6], shape=[2])
            anchor = fn.random.uniform(range=[0.0, 0.4], shape=[2])
            images = fn.erase(images, anchor=anchor, shape=shape, normalized=True, axis_names="HW")
        return images, labels

    pipeline = recipe()
    pipeline.build()
    return pipeline
