"""Transforms, loaders and pipelines of other libraries, as their documentation builds them, nearest to the paper's recipe.

Libraries are imported when they are used: a contender's process holds its own only.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from fastft.bench.child import library
from fastft.recipe.constants import CLIP_MEAN, CLIP_STD

AUGMENT, ERASE = "rand-m9-mstd0.5-inc1", 0.25  # the paper's
TRIES = 20  # about 1 % of the images fail
TIMM_NAMES = {"none": None, "3aug": "3a"}
DALI = "nvidia-dali-cuda120"
PREFETCH = 2  # batches in progress, DALI's default


def timm_transform(size: int) -> Callable[[Any], Any]:
    """timm's transform with the paper's recipe."""
    import timm.data

    transform = timm.data.create_transform(
        size, is_training=True, auto_augment=AUGMENT, interpolation="bicubic", re_prob=ERASE, re_mode="pixel",
        mean=CLIP_MEAN, std=CLIP_STD,
    )  # fmt: skip
    return retrying(transform)


def retrying(transform: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The transform, repeated if timm 1.0 asks Pillow 13 to posterise to 0 bits, which raises; picklable."""
    return partial(_again, transform)


def _again(transform: Callable[[Any], Any], image: Any) -> Any:
    for _ in range(TRIES):
        with suppress(ValueError):
            return transform(image)
    return transform(image)


def timm_batches(
    folder: str, size: int, batch: int, threads: int, repeat: int = 1, *, policy: str = AUGMENT, erase: float = ERASE,
    train: bool = True,
) -> Any:  # fmt: skip
    """timm's loader of (images, labels)."""
    import timm.data

    class RetryingDataset(timm.data.ImageDataset):
        def __getitem__(self, index: int) -> tuple:
            return retrying(super().__getitem__)(index)

    dataset = RetryingDataset(folder)
    dataset.reader.samples = dataset.reader.samples * repeat
    return timm.data.create_loader(
        dataset, (3, size, size), batch, is_training=train, use_prefetcher=False, num_workers=threads,
        interpolation="bicubic", mean=CLIP_MEAN, std=CLIP_STD, color_jitter=None, crop_pct=1.0,
        auto_augment=TIMM_NAMES.get(policy, policy), re_prob=erase, re_mode="pixel",
    )  # fmt: skip


def torchvision_transform(size: int) -> Any:
    """torchvision's v2 transforms closest to the recipe, on Pillow images: its tensor ops have no bicubic resampling.

    Its RandAugment has other ops and one fixed magnitude.
    """
    import torch
    from torchvision.transforms import InterpolationMode, v2

    bicubic = InterpolationMode.BICUBIC
    return v2.Compose([
        v2.RandomResizedCrop(size, interpolation=bicubic, antialias=True), v2.RandomHorizontalFlip(),
        v2.RandAugment(num_ops=2, magnitude=9, interpolation=bicubic), v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True), v2.Normalize(CLIP_MEAN, CLIP_STD), v2.RandomErasing(ERASE),
    ])  # fmt: skip


def dali_pipeline(
    paths: list[str], size: int, batch: int, *, threads: int, prefetch: bool = True, gpu: bool = False
) -> Any:
    """Fused decode and crop, bicubic resize, flip, RandAugment and erase as in DALI's documentation; optionally on the GPU.

    It draws RandAugment's ops for each sample, by conditionals; one fixed magnitude, and erase is its nearest.
    """
    parts = ("", ".fn", ".types", ".auto_aug.rand_augment")
    dali, fn, types, rand_augment = (library(f"nvidia.dali{part}", DALI) for part in parts)

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
        images = rand_augment.rand_augment(images, n=2, m=9, fill_value=128)
        mean, std = [255 * m for m in CLIP_MEAN], [255 * s for s in CLIP_STD]
        images = fn.crop_mirror_normalize(images, mean=mean, std=std, output_layout="HWC")
        if fn.random.coin_flip(probability=0.25, dtype=types.BOOL):
            shape = fn.random.uniform(range=[0.15, 0.6], shape=[2])
            anchor = fn.random.uniform(range=[0.0, 0.4], shape=[2])
            images = fn.erase(images, anchor=anchor, shape=shape, normalized=True, axis_names="HW")
        return images, labels

    pipeline = recipe()
    pipeline.build()
    return pipeline
