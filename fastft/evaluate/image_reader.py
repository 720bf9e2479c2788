"""Image files as batches of the model's input, decoded by threads while the model works on the batch before."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from beton_tools.base.cgroup import usable_cpus
from beton_tools.base.image_formats import depth_prefix, open_image
from fastft.evaluate.image_transform import eval_tensor
from fastft.recipe import Recipe

Source = Path | str | Image.Image
BATCHES_AHEAD = 2  # being decoded or ready, including the one that is delivered next


class ReadImage(NamedTuple):
    """An image as the model's input (3, S, S), and whether it had more than 8 bits per value, which were clipped."""

    tensor: torch.Tensor
    loses_values: bool


Read = ReadImage | str  # an image, or the reason why it cannot be read


def read_batches(images: Iterable[Source], recipe: Recipe, batch: int) -> Iterator[list[tuple[Source, Read]]]:
    """The images in order, at most `batch` at a time, each as read or with the reason why it cannot be."""
    remaining = iter(images)
    ahead: deque[list[tuple[Source, Future[Read] | Read]]] = deque()
    pool = ThreadPoolExecutor(usable_cpus(), "decode")
    try:
        while True:
            while len(ahead) < BATCHES_AHEAD and (chunk := list(islice(remaining, batch))):
                ahead.append([(image, _begin(pool, image, recipe)) for image in chunk])
            if not ahead:
                return
            yield [
                (image, read.result() if isinstance(read, Future) else read)
                for image, read in ahead.popleft()
            ]
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(pool: ThreadPoolExecutor, image: Source, recipe: Recipe) -> Future[Read] | Read:
    """Start to read a file. An image in memory is read here: it may be in the batch twice, and is not safe for threads."""
    if isinstance(image, Image.Image):
        return read_image(image, recipe)
    return pool.submit(read_image, image, recipe)


def read_image(source: Source, recipe: Recipe) -> Read:
    """The image as the model's input, or the reason why it cannot be read."""
    try:
        opened = nullcontext(source) if isinstance(source, Image.Image) else open_image(Path(source))
        with opened as image:
            tensor = eval_tensor(
                image,
                size=recipe.model.image_size,
                crop_pct=recipe.train.eval_crop_pct,
                mean=recipe.augment.mean,
                std=recipe.augment.std,
            )
            return ReadImage(tensor, depth_prefix(image) != "")
    except Exception as error:  # Pillow's plug-ins raise many kinds of exceptions for damaged files
        return getattr(error, "strerror", None) or str(error) or type(error).__name__
