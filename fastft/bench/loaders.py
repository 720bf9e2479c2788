"""Loaders of fastft and of other libraries, these as their documentation builds them, nearest to the paper's recipe.

Ours and the peers deliver normalised float32 images at `size`, unless their name says otherwise. Libraries are imported when
they are used: a contender's process holds its own only.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from fastft.bench.child import Arm, library
from fastft.recipe.constants import CLIP_MEAN, CLIP_STD

AUGMENT, ERASE = "rand-m9-mstd0.5-inc1", 0.25  # the paper's
TRIES = 20  # about 1 % of the images fail
TIMM_NAMES = {"none": None, "3aug": "3a"}
DALI = "nvidia-dali-cuda120"
PREFETCH = 2  # batches in progress, DALI's default
Pass = Callable[[], Iterator[int]]  # one pass over the images; yields the size of each batch


def warm(maker: str, **arguments: Any) -> dict[str, Arm]:
    """Whole passes with the files in the page cache."""
    one_pass = MAKERS[maker](**arguments)
    return {"pass": lambda: sum(one_pass())}


# loaders -------------------------------------------------------------------------------------------------------------


def ours(
    path: str, size: int, batch: int, threads: int, repeat: int, *, policy: str = AUGMENT, erase: float = ERASE,
    device: str = "cpu",
) -> Pass:  # fmt: skip
    import torch

    from fastft.augment.policies import AugmentPolicy
    from fastft.data.loader import TrainLoader
    from fastft.data.stage import Output

    loader = TrainLoader(
        path, AugmentPolicy(policy, erase_prob=erase), Output(size, device), batch_size=batch, workers=threads,
        subset=repeated(path, repeat),
    )  # fmt: skip
    epochs = itertools.count()

    def one_pass() -> Iterator[int]:
        for b in loader.epoch(next(epochs)):
            yield len(b.ids)
        if device != "cpu":
            torch.cuda.synchronize()

    return one_pass


def ffcv(path: str, size: int, batch: int, threads: int, repeat: int, normalise: bool = False) -> Pass:
    """Stock FFCV: its decoder, flip, and with `normalise` float32 instead of uint8."""
    from ffcv.fields.decoders import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, ToTensor, ToTorchImage

    operations = [RandomResizedCropRGBImageDecoder((size, size)), RandomHorizontalFlip()]
    if normalise:
        mean, std = 255 * np.array(CLIP_MEAN), 255 * np.array(CLIP_STD)
        operations.append(NormalizeImage(mean, std, np.float32))
    loader = Loader(
        path, batch, threads, order=OrderOption.RANDOM, seed=0,
        indices=repeated(path, repeat), drop_last=True,
        pipelines={"image": [*operations, ToTensor(), ToTorchImage()]},
    )  # fmt: skip
    return lambda: (len(images) for images, _ in loader)


def repeated(path: str, times: int) -> np.ndarray | None:
    """Indices with every sample `repeat` times; None if once."""
    from beton_tools.read.format import Beton

    return None if times == 1 else np.tile(np.arange(Beton.open(path).num_samples), times)


def timm(folder: str, size: int, batch: int, threads: int, repeat: int, **options: Any) -> Pass:
    loader = timm_batches(folder, size, batch, threads, repeat, **options)
    return lambda: (len(images) for images, _ in loader)


def dali(folder: str, size: int, batch: int, threads: int, repeat: int, gpu: bool = False) -> Pass:
    """DALI's CPU or GPU pipeline with the default prefetch of two batches; none is computed outside the pass."""
    paths = [str(p) for p in sorted(Path(folder).glob("*/*"))] * repeat
    pipeline = dali_pipeline(paths, size, batch, threads=threads, gpu=gpu)

    def one_pass() -> Iterator[int]:
        batches = len(paths) // batch
        for started in range(batches + PREFETCH):
            if started < batches:
                pipeline.schedule_run()
            if started >= PREFETCH:
                pipeline.share_outputs()
                yield batch
                pipeline.release_outputs()

    return one_pass


MAKERS: dict[str, Callable[..., Pass]] = {"ours": ours, "ffcv": ffcv, "timm": timm, "dali": dali}


# transforms and pipelines of other libraries --------------------------------------------------------------------------


def timm_batches(
    folder: str, size: int, batch: int, threads: int, repeat: int = 1, *, policy: str = AUGMENT, erase: float = ERASE
) -> Any:
    """timm's loader of (images, labels)."""
    import timm.data

    class RetryingDataset(timm.data.ImageDataset):
        def __getitem__(self, index: int) -> tuple:
            for _ in range(TRIES):  # timm 1.0 asks Pillow 13 to posterise to 0 bits, which raises
                with suppress(ValueError):
                    return super().__getitem__(index)
            return super().__getitem__(index)

    dataset = RetryingDataset(folder)
    dataset.reader.samples = dataset.reader.samples * repeat
    return timm.data.create_loader(
        dataset, (3, size, size), batch, is_training=True, use_prefetcher=False, num_workers=threads,
        interpolation="bicubic", mean=CLIP_MEAN, std=CLIP_STD, color_jitter=None, crop_pct=1.0,
        auto_augment=TIMM_NAMES.get(policy, policy), re_prob=erase, re_mode="pixel",
    )  # fmt: skip


def dali_pipeline(paths: list[str], size: int, batch: int, *, threads: int, gpu: bool = False) -> Any:
    """Fused decode and crop, bicubic resize, flip, RandAugment and erase as in DALI's documentation; optionally on the GPU.

    It draws RandAugment's ops for each sample, by conditionals; one fixed magnitude, and erase is its nearest.
    """
    parts = ("", ".fn", ".types", ".auto_aug.rand_augment")
    dali, fn, types, rand_augment = (library(f"nvidia.dali{part}", DALI) for part in parts)

    @dali.pipeline_def(
        batch_size=batch, num_threads=threads, device_id=0 if gpu else None, enable_conditionals=True, seed=0,
        prefetch_queue_depth=PREFETCH,
    )  # fmt: skip
    def recipe() -> Any:
        encoded, labels = fn.readers.file(files=paths, shuffle_after_epoch=True)
        images = fn.decoders.image_random_crop(
            encoded, device="mixed" if gpu else "cpu", random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3]
        )
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
