"""Image files through a model: decoded by threads while the model works on the batch before, with torchvision's transforms."""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from beton_tools.base.cgroup import usable_cpus
from beton_tools.base.image_formats import depth_prefix, open_image
from fastft.evaluate.trained import BATCH, Trained
from fastft.recipe import Recipe
from fastft.train.distributed import World
from fastft.train.evaluate import forward
from fastft.train.precision import inference_precision

Source = Path | str | Image.Image
Colour = Sequence[float]  # per channel, in 0..1
BATCHES_AHEAD = 2  # being decoded or ready, including the one that is delivered next
MOST_PIXELS = 1 << 26  # of a resized image; one of 1 x 65,000 pixels would have 3.3 billion


class ReadImage(NamedTuple):
    """An image as the model's input (3, S, S), and whether it had more than 8 bits per value, which were clipped."""

    tensor: Tensor
    loses_values: bool


Read = ReadImage | str  # an image, or the reason why it cannot be read


@dataclass(frozen=True)
class FileBatch:
    """Images in order, each as read, and those that could be read as one tensor on the device; a black one if none could."""

    reads: list[tuple[Source, Read]]
    images: Tensor


def compute_outputs(
    trained: Trained, images: Iterable[Source], device: torch.device, method: str = "__call__"
) -> Iterator[tuple[Source, Read, Tensor]]:
    """Each image, as read, and its row of the model's output, float32 on the CPU; an empty row if it cannot be read.

    method: "pooled" for embeddings instead of logits.
    """
    batches = read_batches(images, trained.recipe, BATCH, device)
    precision = inference_precision(trained.recipe.train.amp, device)
    world = World(0, 1, 0, device)  # every process reads all files
    for batch, (outputs,) in forward([trained.model], batches, world, precision, method=method):
        rows = iter(outputs.cpu())
        for source, read in batch.reads:
            yield source, read, next(rows) if isinstance(read, ReadImage) else torch.empty(0)


def read_batches(images: Iterable[Source], recipe: Recipe, size: int, device: torch.device) -> Iterator[FileBatch]:
    """The images in order, at most `size` at a time."""
    remaining = iter(images)
    ahead: deque[list[tuple[Source, Future[Read] | Read]]] = deque()
    pool = ThreadPoolExecutor(usable_cpus(), "decode")
    side = recipe.model.image_size
    try:
        while True:
            while len(ahead) < BATCHES_AHEAD and (chunk := list(islice(remaining, size))):
                ahead.append([(image, _begin(pool, image, recipe)) for image in chunk])
            if not ahead:
                return
            reads = [(image, r.result() if isinstance(r, Future) else r) for image, r in ahead.popleft()]
            tensors = [read.tensor for _, read in reads if isinstance(read, ReadImage)]
            stacked = torch.stack(tensors or [torch.zeros(3, side, side)])
            yield FileBatch(reads, stacked.to(device, memory_format=torch.channels_last))
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(pool: ThreadPoolExecutor, image: Source, recipe: Recipe) -> Future[Read] | Read:
    """Start to read a file. An image in memory is read here: it may be in the batch twice, and is not safe for threads."""
    if isinstance(image, Image.Image):
        return read_image(image, recipe)
    return pool.submit(read_image, image, recipe)


def read_image(source: Source, recipe: Recipe) -> Read:
    """The image as the model's input, or the reason why it cannot be read."""
    size, crop_pct = recipe.model.image_size, recipe.train.eval_crop_pct
    try:
        opened = nullcontext(source) if isinstance(source, Image.Image) else open_image(Path(source))
        with opened as image:
            colours = {"mean": recipe.augment.mean, "std": recipe.augment.std}
            tensor = eval_tensor(image, size=size, crop_pct=crop_pct, **colours)
            return ReadImage(tensor, depth_prefix(image) != "")
    except Exception as error:  # Pillow's plug-ins raise many kinds of exceptions for damaged files
        return getattr(error, "strerror", None) or str(error) or type(error).__name__


def eval_tensor(image: Image.Image, *, size: int, crop_pct: float, mean: Colour, std: Colour) -> Tensor:
    """The evaluation input (3, size, size) for an image, normalised, float32 on the CPU.

    Short side to floor(size / crop_pct) by Pillow's bicubic filter, the longer side truncated; then the central crop. Each
    operation is the same as in torchvision's Resize, CenterCrop, ToTensor and Normalize, which are not imported.
    """
    cropped = _resize_and_crop(image.convert("RGB"), math.floor(size / crop_pct), size)
    scaled_HWC = np.asarray(cropped).astype(np.float32) / np.float32(255)
    normalised_HWC = (scaled_HWC - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return torch.from_numpy(np.ascontiguousarray(normalised_HWC.transpose(2, 0, 1)))


def _resize_and_crop(image: Image.Image, short_side: int, size: int) -> Image.Image:
    width, height = image.size
    shortest = min(width, height)
    target = int(short_side * width / shortest), int(short_side * height / shortest)
    left, top = (round((side - size) / 2) for side in target)
    crop = left, top, left + size, top + size
    if target[0] * target[1] > MOST_PIXELS:  # resize the crop only: equal but for rounding
        across, down = width / target[0], height / target[1]
        box = crop[0] * across, crop[1] * down, min(crop[2] * across, width), min(crop[3] * down, height)
        return image.resize((size, size), Image.Resampling.BICUBIC, box)
    return (image if target == image.size else image.resize(target, Image.Resampling.BICUBIC)).crop(crop)
