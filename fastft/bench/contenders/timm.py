"""timm's create_loader, as its train.py calls it. Pillow decodes."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from io import BytesIO
from typing import Any

from fastft.bench.child import Arm
from fastft.bench.task import AUGMENT, ERASE, WHOLE, Entry, Pass, Stages, Task, Work, decoding, staged
from fastft.recipe.constants import CLIP_MEAN, CLIP_STD

TRIES = 20  # about 1 % of the images fail
TIMM_NAMES = {"none": None, "3aug": "3a"}
NCHW = "channels first in memory"


def make(task: Task) -> Pass:
    policy, erase = (AUGMENT, ERASE) if task.work == Work.RECIPE else ("none", 0.0)
    loader = batches(
        task.files["folder"], task.size, task.batch, task.threads, task.repeat, policy=policy, erase=erase,
        train=task.work != Work.EVALUATION,
    )  # fmt: skip
    return lambda: (len(images) for images, _ in loader)


def batches(
    folder: str, size: int, batch: int, threads: int, repeat: int = 1, *, policy: str = AUGMENT, erase: float = ERASE,
    train: bool = True,
) -> Any:  # fmt: skip
    """Return timm's loader, which yields (images, labels)."""
    import timm.data

    dataset = timm.data.ImageDataset(folder)
    dataset.reader.samples = dataset.reader.samples * repeat
    loader = timm.data.create_loader(
        dataset, (3, size, size), batch, is_training=train, use_prefetcher=False, num_workers=threads,
        interpolation="bicubic", mean=CLIP_MEAN, std=CLIP_STD, color_jitter=None, crop_pct=1.0,
        auto_augment=TIMM_NAMES.get(policy, policy), re_prob=erase, re_mode="pixel",
    )  # fmt: skip
    dataset.transform = partial(retried, dataset.transform)
    return loader


class RetryingTransform:
    """timm's transform for a Pillow image or a file's bytes, picklable, for loaders without augmentation of their own."""

    def __init__(self, size: int, work: str) -> None:
        import timm.data

        recipe = work == Work.RECIPE
        self.transform = timm.data.create_transform(
            size, is_training=True, auto_augment=AUGMENT if recipe else None, interpolation="bicubic", color_jitter=None,
            re_prob=ERASE if recipe else 0.0, re_mode="pixel", mean=CLIP_MEAN, std=CLIP_STD,
        )  # fmt: skip

    def __call__(self, image: Any, *_: Any) -> Any:
        return retried(self.transform, decode(image) if isinstance(image, bytes | memoryview) else image)


def retried(function: Any, argument: Any) -> Any:
    """Call again if it fails, because timm 1.0 asks Pillow 13 to posterise to 0 bits, which raises."""
    for _ in range(TRIES):
        with suppress(ValueError):
            return function(argument)
    return function(argument)


def stages(size: int) -> Stages:
    """Return create_transform's own list: crop and flip, RandAugment, tensor, normalise, erase."""
    crop, flip, augment, *finish = RetryingTransform(size, Work.RECIPE).transform.transforms
    return staged(decode, [crop, flip, partial(retried, augment), *finish])


def decode(file: bytes | memoryview) -> Any:
    from PIL import Image

    return Image.open(BytesIO(file)).convert("RGB")


def in_bench(file: str, name: str) -> Callable[..., dict[str, Arm]]:
    """Return a benchmark's function, which is imported when it is called, because it imports torch."""
    return lambda task, **options: getattr(import_module(f"fastft.bench.{file}"), name)(task, **options)


WORK = dict.fromkeys((Work.RECIPE, Work.CROP, Work.EVALUATION, Work.MEMORY), (NCHW,))
ENTRIES = (
    Entry("timm", "timm", make, WORK, stages=stages),
    Entry("Pillow", "pillow", decoding(lambda: decode), {Work.DECODE: WHOLE}),
    Entry("timm", "timm", in_bench("step_bench", "timm_step"), {Work.STEP: ()}),
    Entry("timm", "timm", in_bench("e2e_bench", "train_timm"), {Work.TRAIN: ()}),
)
