"""FFCV's Loader (docs.ffcv.io/ffcv_examples/cifar10.html): with its own operations, and with fastft's."""

import os
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np

from fastft.bench.contenders.torchvision import image_folder
from fastft.bench.dataset import QUALITY
from fastft.bench.ours import repeated
from fastft.bench.task import AUGMENT, BETON, ERASE, RATIO, SCALE, Entry, Pass, Task, Work
from fastft.recipe.constants import CLIP_MEAN, CLIP_STD

BYTES = "uint8, not normalised"
PIXELS = "OpenCV's area resize, fast DCT"


def make(task: Task, normalise: bool = False, **options: Any) -> Pass:
    """Run stock FFCV: its decoder, flip, and with `normalise` float32 instead of uint8. options: for its Loader."""
    from ffcv.fields.decoders import CenterCropRGBImageDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, ToTensor, ToTorchImage

    shape = (task.size, task.size)
    if task.work == Work.EVALUATION:
        operations = [CenterCropRGBImageDecoder(shape, ratio=1.0)]
    else:
        operations = [RandomResizedCropRGBImageDecoder(shape), RandomHorizontalFlip()]
    if normalise:
        operations.append(NormalizeImage(255 * np.array(CLIP_MEAN), 255 * np.array(CLIP_STD), np.float32))
    return loader(task, [*operations, ToTensor(), ToTorchImage()], **options)


def with_our_operations(task: Task, normalise: bool = True) -> Pass:
    """Run FFCV's Loader with fastft's decoder and augmentation, as in docs/coming-from.md."""
    from ffcv.transforms import ToTensor, ToTorchImage

    from fastft import ffcv as ours

    decoder = ours.RandomResizedCropRGBImageDecoder((task.size, task.size), hflip=0.5)
    if not normalise:
        return loader(task, [decoder, ToTensor(), ToTorchImage()])
    policy, erase = (AUGMENT, ERASE) if task.work == Work.RECIPE else ("none", 0.0)
    return loader(task, [decoder, ToTensor(), ours.Augment(policy, erase_prob=erase)])


def loader(task: Task, operations: list[Any], order: str = "RANDOM", **options: Any) -> Pass:
    from ffcv.loader import Loader as FfcvLoader
    from ffcv.loader import OrderOption

    train = task.work != Work.EVALUATION
    decodes = task.work == Work.DECODE
    made = FfcvLoader(
        task.files["beton"], task.batch, task.threads, order=OrderOption[order if train else "SEQUENTIAL"],
        seed=0, indices=repeated(task), drop_last=train and not decodes,
        pipelines={"image": operations, **({"label": None} if decodes else {})}, **options,
    )  # fmt: skip
    return lambda: (len(images) for images, *_ in made)


def decode(task: Task) -> Pass:
    """Decode and resize a random crop, through its Loader. Without a resize there is no random crop."""
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.transforms import ToTensor

    return loader(task, [RandomResizedCropRGBImageDecoder((task.size, task.size), SCALE, RATIO), ToTensor()])


def convert(task: Task) -> Callable[[int | None], int]:
    """Write a .beton with FFCV's DatasetWriter, whose images have at most this many pixels on their longest side."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter
    from torchvision.datasets.folder import default_loader

    images, path = image_folder(task, default_loader), Path(task.files["scratch"]) / "ffcv.beton"

    def run(side: int | None) -> int:
        image = RGBImageField("jpg", max_resolution=side, jpeg_quality=QUALITY)
        with Path(os.devnull).open("w") as quiet, redirect_stderr(quiet):  # hides its progress bar
            writer = DatasetWriter(str(path), {"image": image, "label": IntField()}, num_workers=task.threads)
            writer.from_indexed_dataset(images)
        path.unlink()
        return len(images)

    return run


STOCK, NORMALISED, DECODER, OPERATIONS = (
    Entry("stock FFCV", "ffcv", make, {Work.CROP: (BYTES, PIXELS), Work.EVALUATION: (BYTES, PIXELS)}, reads=BETON),
    Entry("stock FFCV, normalised", "ffcv", make, {Work.CROP: (PIXELS,)}, {"normalise": True}, BETON),
    Entry("FFCV, fastft's decoder", "ffcv", with_our_operations, {Work.CROP: (BYTES,)}, {"normalise": False}, BETON),
    Entry("FFCV, fastft's operations", "ffcv", with_our_operations, {Work.CROP: (), Work.RECIPE: ()}, reads=BETON),
)
ENTRIES = (
    *(STOCK, NORMALISED, DECODER, OPERATIONS),
    Entry("stock FFCV", "ffcv", decode, {Work.DECODE: ("with its resize to 224", "fast DCT")}, reads=BETON),
    Entry("FFCV DatasetWriter", "ffcv", convert, {Work.CONVERT: ("decodes and encodes every image", "writes no crop index")}),
)  # fmt: skip
