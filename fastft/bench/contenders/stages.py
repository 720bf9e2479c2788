"""Peers' transforms in stages, from a file's bytes to a normalised tensor, and the share for entropy decoding.

The share is of libjpeg-turbo's decoding time.
"""

import time
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any

import numpy as np

from beton_tools.jpeg import open_decoders, turbo
from beton_tools.jpeg.markers import OK, parse
from fastft.bench.contenders import simplejpeg, timm, torchvision
from fastft.bench.contenders.task import RECIPE

READ, ENTROPY, PIXELS, RESIZE, OPS, FINISH, HAND_OVER = PARTS = (
    "read", "entropy decoding", "inverse DCT and colour", "resize", "ops", "normalise and erase", "hand-over",
)  # fmt: skip
DECODE = PIXELS  # a peer's stage, which `entropy_share` divides
Stages = Sequence[tuple[str, Callable[[Any], Any]]]


def timm_stages(size: int) -> Stages:
    """Return create_transform's own list: crop and flip, RandAugment, tensor, normalise, erase."""
    from PIL import Image

    crop, flip, augment, *finish = timm.RetryingTransform(size, RECIPE).transform.transforms
    return (
        (DECODE, lambda file: Image.open(BytesIO(file)).convert("RGB")),
        (RESIZE, lambda image: flip(crop(image))),
        (OPS, lambda image: timm.retried(augment, image)),
        (FINISH, chain(finish)),
    )  # fmt: skip


def torchvision_stages(size: int) -> Stages:
    import torch

    crop, flip, augment, *finish = torchvision.transform(size, RECIPE).transforms
    return (
        (DECODE, lambda file: torchvision.decode_bytes(torch.frombuffer(bytearray(file), dtype=torch.uint8))),
        (RESIZE, lambda image: flip(crop(image))),
        (OPS, augment),
        (FINISH, chain(finish)),
    )  # fmt: skip


def simplejpeg_stages(size: int) -> Stages:
    transform = simplejpeg.Transform(size, RECIPE)
    return (
        (DECODE, transform.decode), (RESIZE, transform.crop), (OPS, transform.draw_ops), (FINISH, transform.finish)
    )  # fmt: skip


def chain(functions: Sequence[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    def run(value: Any) -> Any:
        for function in functions:
            value = function(value)
        return value

    return run


# by file in this folder: the row's name, and its stages for an image size
STAGES: dict[str, tuple[str, Callable[[int], Stages]]] = {
    "timm": ("timm", timm_stages),
    "torchvision": ("torchvision v2", torchvision_stages),
    "simplejpeg": ("simplejpeg + OpenCV", simplejpeg_stages),
}


PASSES = 2  # the fastest pass counts
QUARTER = 4  # decoding at a quarter of the size reads every coefficient, but computes only a sixteenth of the pixels


def entropy_share(files: Sequence[bytes]) -> float:
    """Estimate the share of libjpeg-turbo's decoding time that entropy decoding takes for these JPEGs.

    It is about the share that decoding at QUARTER takes.
    """
    handle = int(open_decoders(1)[0])
    sources = [np.frombuffer(file, np.uint8) for file in files]
    sizes = [(head.height, head.width) for head in map(parse, sources)]
    pixels = np.empty(3 * max(height * width for height, width in sizes), np.uint8)
    fastest: dict[int, float] = {}
    for scale in PASSES * (QUARTER, 1):
        began = time.process_time()
        for source, (height, width) in zip(sources, sizes, strict=True):
            shape = -(-height // scale), -(-width // scale)
            if turbo.decompress(handle, source.ctypes.data, source.size, pixels.ctypes.data, *shape) != OK:
                raise RuntimeError("an image could not be decoded, so the share would mean nothing")
        fastest[scale] = min(fastest.get(scale, np.inf), time.process_time() - began)
    return float(min(1.0, fastest[QUARTER] / fastest[1]))
