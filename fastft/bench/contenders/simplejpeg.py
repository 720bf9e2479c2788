"""simplejpeg decodes, OpenCV crops and resizes, timm's RandAugment augments, in torch's DataLoader.

With torchvision's it forms the fastest tier of decoders inside DataLoaders in arXiv 2605.08731.
"""

import random
from collections.abc import Callable
from typing import Any

import numpy as np

from fastft.bench.child import library
from fastft.bench.contenders.timm import NCHW, retried
from fastft.bench.contenders.torchvision import image_folder, torch_loader
from fastft.bench.task import (
    AUGMENT,
    ERASE,
    WHOLE,
    Entry,
    Part,
    Pass,
    Stages,
    Task,
    Work,
    decoding,
    random_box,
    read_file,
)
from fastft.recipe.constants import CLIP_MEAN, CLIP_STD

OPENCV = "OpenCV's area or cubic resize"


class Transform:
    """JPEG bytes to a normalised tensor (3, S, S)."""

    def __init__(self, size: int, work: str) -> None:
        self.size, self.work = size, work
        self.scale = (1 / (255 * np.array(CLIP_STD))).astype(np.float32)
        self.shift = (-np.array(CLIP_MEAN) / np.array(CLIP_STD)).astype(np.float32)
        self.augment = self.erase = None
        if work == Work.RECIPE:
            from timm.data.auto_augment import rand_augment_transform
            from timm.data.random_erasing import RandomErasing

            fill = tuple(round(255 * m) for m in CLIP_MEAN)
            self.augment = rand_augment_transform(AUGMENT, {"translate_const": int(size * 0.45), "img_mean": fill})
            self.erase = RandomErasing(ERASE, mode="pixel", device="cpu")

    def __call__(self, file: bytes) -> Any:
        return self.finish(self.draw_ops(self.crop(decode(file))))

    def crop(self, pixels: np.ndarray) -> np.ndarray:
        """Crop, resize and flip."""
        import cv2

        box = centre_square if self.work == Work.EVALUATION else random_box
        y, x, h, w = box(*pixels.shape[:2])
        method = cv2.INTER_AREA if h * w > self.size * self.size else cv2.INTER_CUBIC
        image = cv2.resize(pixels[y : y + h, x : x + w], (self.size, self.size), interpolation=method)
        flips = self.work != Work.EVALUATION and random.random() < 0.5
        return cv2.flip(image, 1) if flips else image

    def draw_ops(self, image: np.ndarray) -> np.ndarray:
        if self.augment is None:
            return image
        from PIL import Image

        return np.asarray(retried(self.augment, Image.fromarray(image)))

    def finish(self, image: np.ndarray) -> Any:
        """Normalise and erase."""
        import torch

        normalised = torch.from_numpy(image * self.scale + self.shift).permute(2, 0, 1).contiguous()
        return normalised if self.erase is None else self.erase(normalised)


def centre_square(height: int, width: int) -> tuple[int, int, int, int]:
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def make(task: Task) -> Pass:
    cv2 = library("cv2", "opencv-python")
    library("simplejpeg", "simplejpeg")
    cv2.setNumThreads(0)  # OpenCV's users do this in DataLoader workers
    data = image_folder(task, read_file, Transform(task.size, task.work))
    return torch_loader(data, task, shuffle=task.work != Work.EVALUATION)


def stages(size: int) -> Stages:
    transform = Transform(size, Work.RECIPE)
    return (
        (Part.DECODED, decode), (Part.RESIZE, transform.crop), (Part.OPS, transform.draw_ops),
        (Part.FINISH, transform.finish),
    )  # fmt: skip


def decode(file: bytes) -> Any:
    return library("simplejpeg", "simplejpeg").decode_jpeg(file, "RGB")


def opencv() -> Callable[[bytes], Any]:
    cv2 = library("cv2", "opencv-python")
    cv2.setNumThreads(0)
    return lambda file: cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR_RGB)


MOSTLY = (OPENCV, "timm's RandAugment", NCHW)
WORK = {Work.RECIPE: MOSTLY, Work.CROP: (OPENCV, NCHW), Work.EVALUATION: (OPENCV, NCHW), Work.MEMORY: MOSTLY}
ENTRIES = (
    Entry("simplejpeg + OpenCV", "simplejpeg", make, WORK, stages=stages),
    Entry("simplejpeg", "simplejpeg", decoding(lambda: decode), {Work.DECODE: WHOLE}),
    Entry("OpenCV", "opencv-python", decoding(opencv), {Work.DECODE: WHOLE}),
)
