"""FFCV's Loader (docs.ffcv.io/ffcv_examples/cifar10.html): with its own operations, and with fastft's."""

from typing import Any

import numpy as np

from fastft.bench.contenders.ours import repeated
from fastft.bench.contenders.task import AUGMENT, CROP, ERASE, EVALUATION, RECIPE, Loader, Pass, Task
from fastft.recipe.constants import CLIP_MEAN, CLIP_STD

BYTES = "uint8, not normalised"
PIXELS = "OpenCV's area resize, fast DCT"


def make(task: Task, normalise: bool = False, **options: Any) -> Pass:
    """Run stock FFCV: its decoder, flip, and with `normalise` float32 instead of uint8. options: for its Loader."""
    from ffcv.fields.decoders import CenterCropRGBImageDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, ToTensor, ToTorchImage

    shape = (task.size, task.size)
    if task.work == EVALUATION:
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
    policy, erase = (AUGMENT, ERASE) if task.work == RECIPE else ("none", 0.0)
    return loader(task, [decoder, ToTensor(), ours.Augment(policy, erase_prob=erase)])


def loader(task: Task, operations: list[Any], order: str = "RANDOM", **options: Any) -> Pass:
    from ffcv.loader import Loader as FfcvLoader
    from ffcv.loader import OrderOption

    train = task.work != EVALUATION
    made = FfcvLoader(
        task.files["beton"], task.batch, task.threads, order=OrderOption[order if train else "SEQUENTIAL"],
        seed=0, indices=repeated(task), drop_last=train, pipelines={"image": operations}, **options,
    )  # fmt: skip
    return lambda: (len(images) for images, _ in made)


LOADERS = (
    Loader("stock FFCV", "ffcv", make, {CROP: (BYTES, PIXELS), EVALUATION: (BYTES, PIXELS)}),
    Loader("stock FFCV, normalised", "ffcv", make, {CROP: (PIXELS,)}, {"normalise": True}),
    Loader("FFCV, fastft's decoder", "ffcv", with_our_operations, {CROP: (BYTES,)}, {"normalise": False}),
    Loader("FFCV, fastft's operations", "ffcv", with_our_operations, {CROP: (), RECIPE: ()}),
)
