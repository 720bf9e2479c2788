"""Peers' transforms in stages, from a file's bytes to a normalised tensor; and libjpeg-turbo's share of entropy decoding."""

import ctypes
import time
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any

import numpy as np

from beton_tools.jpeg import open_decoders, turbo
from beton_tools.jpeg.markers import parse
from fastft.bench.contenders import simplejpeg, timm, torchvision
from fastft.bench.contenders.task import RECIPE

READ, ENTROPY, PIXELS, RESIZE, OPS, FINISH, HAND_OVER = PARTS = (
    "read", "entropy decoding", "inverse DCT and colour", "resize", "ops", "normalise and erase", "hand-over",
)  # fmt: skip
DECODE = PIXELS  # a stage of a peer, which is divided by `entropy_share`
Stages = Sequence[tuple[str, Callable[[Any], Any]]]


def timm_stages(size: int) -> Stages:
    """create_transform's own list: crop and flip, RandAugment, tensor, normalise, erase."""
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


# by file of this folder: the row's name, its stages for an image size
STAGES: dict[str, tuple[str, Callable[[int], Stages]]] = {
    "timm": ("timm", timm_stages),
    "torchvision": ("torchvision v2", torchvision_stages),
    "simplejpeg": ("simplejpeg + OpenCV", simplejpeg_stages),
}


def entropy_share(files: Sequence[bytes]) -> float:
    """Share of libjpeg-turbo's decoding time that it takes to read the coefficients of these JPEGs."""
    began = time.process_time()
    for file in files:
        read_coefficients(file)
    read = time.process_time()
    handle = int(open_decoders(1)[0])
    for file in files:
        source = np.frombuffer(file, np.uint8)
        head = parse(source)
        pixels = np.empty(3 * head.height * head.width, np.uint8)
        turbo.decompress(handle, source.ctypes.data, source.size, pixels.ctypes.data, head.height, head.width)
    return min(1.0, (read - began) / (time.process_time() - read))


_NO_OUTPUT = 16  # TJXOPT_NOOUTPUT: the coefficients are read and nothing is written


def read_coefficients(jpeg: bytes) -> None:
    library = turbo.open_library()
    library.tjInitTransform.restype = ctypes.c_void_p
    handle, transform = ctypes.c_void_p(library.tjInitTransform()), turbo.Transform(options=_NO_OUTPUT)
    out, size = ctypes.c_void_p(), ctypes.c_ulong()
    given = ctypes.byref(out), ctypes.byref(size), ctypes.byref(transform)
    try:
        if library.tjTransform(handle, jpeg, ctypes.c_ulong(len(jpeg)), 1, *given, 0):
            raise RuntimeError("libjpeg-turbo cannot read the coefficients of an image")
    finally:
        library.tjDestroy(handle)
