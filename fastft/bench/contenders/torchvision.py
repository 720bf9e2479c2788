"""torchvision v2 on tensors from decode_jpeg, in torch's DataLoader (pytorch.org/vision/stable/transforms.html).

Its page on performance recommends uint8 tensors for resizing, and torch's DataLoader with worker processes.
"""

from collections.abc import Callable
from typing import Any

from fastft.bench.task import ERASE, RATIO, SCALE, WHOLE, Entry, Pass, Stages, Task, Work, decoding, read_file, staged
from fastft.recipe.constants import CLIP_MEAN, CLIP_STD

OTHER = "other RandAugment: one magnitude, bilinear"
NCHW = "channels first in memory"


def make(task: Task) -> Pass:
    return torch_loader(
        image_folder(task, decode, transform(task.size, task.work)), task, shuffle=task.work != Work.EVALUATION
    )


def image_folder(task: Task, loader: Callable[[str], Any], transform: Any = None) -> Any:
    """Return torchvision's data set of (image, class) for the files, `repeat` times."""
    from torchvision.datasets import ImageFolder

    dataset = ImageFolder(task.files["folder"], transform, loader=loader)
    dataset.samples = dataset.samples * task.repeat
    return dataset


def decode(path: str) -> Any:
    """Decode a file to a uint8 tensor (3, H, W)."""
    return decode_memory(read_file(path))


def decode_memory(file: bytes) -> Any:
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    return decode_jpeg(torch.frombuffer(bytearray(file), dtype=torch.uint8), mode=ImageReadMode.RGB)


def transform(size: int, work: str) -> Any:
    """Return torchvision's v2 transforms closest to the recipe. Affine ops on tensors have no bicubic resampling."""
    import torch
    from torchvision.transforms import InterpolationMode, v2

    bicubic, bilinear = InterpolationMode.BICUBIC, InterpolationMode.BILINEAR
    normalise = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(CLIP_MEAN, CLIP_STD)]
    if work == Work.EVALUATION:
        return v2.Compose([v2.Resize(size, interpolation=bicubic, antialias=True), v2.CenterCrop(size), *normalise])
    crop = v2.RandomResizedCrop(size, scale=SCALE, ratio=RATIO, interpolation=bicubic, antialias=True)
    first = [crop, v2.RandomHorizontalFlip()]
    if work == Work.CROP:
        return v2.Compose([*first, *normalise])
    augment = v2.RandAugment(num_ops=2, magnitude=9, interpolation=bilinear)
    return v2.Compose([*first, augment, *normalise, v2.RandomErasing(ERASE)])


def torch_loader(data: Any, task: Task, shuffle: bool | None = True) -> Pass:
    """Return torch's DataLoader.

    shuffle None: the data is a stream, where drop_last would make each worker drop its incomplete last batch.
    """
    from torch.utils.data import DataLoader

    loader = DataLoader(
        data, task.batch, shuffle=shuffle, num_workers=task.threads, drop_last=bool(shuffle), persistent_workers=True
    )
    return lambda: (len(images) for images, *_ in loader)


def stages(size: int) -> Stages:
    return staged(decode_memory, transform(size, Work.RECIPE).transforms)


def decoder() -> Callable[[bytes], Any]:
    import torch

    torch.set_num_threads(1)
    return decode_memory


PARTLY = (OTHER, NCHW)
WORK = {Work.RECIPE: PARTLY, Work.CROP: (NCHW,), Work.EVALUATION: (NCHW,), Work.MEMORY: PARTLY}
ENTRIES = (
    Entry("torchvision v2", "torchvision", make, WORK, stages=stages),
    Entry("torchvision", "torchvision", decoding(decoder), {Work.DECODE: WHOLE}),
)
