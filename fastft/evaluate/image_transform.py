"""An image file as the model's input, with the arithmetic of torchvision's transforms but without importing it."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

Colour = Sequence[float]  # per channel, in 0..1


def eval_tensor(image: Image.Image, *, size: int, crop_pct: float, mean: Colour, std: Colour) -> torch.Tensor:
    """The evaluation input (3, size, size) for an image, normalised, float32 on the CPU.

    Short side to floor(size / crop_pct) by Pillow's bicubic filter, the longer side truncated; then the central crop. Each
    operation is the same as in torchvision's Resize, CenterCrop, ToTensor and Normalize.
    """
    image = _resize_short_side(image.convert("RGB"), math.floor(size / crop_pct))
    left, top = (round((side - size) / 2) for side in image.size)
    pixels_HWC = np.asarray(image.crop((left, top, left + size, top + size)))
    scaled_HWC = pixels_HWC.astype(np.float32) / np.float32(255)
    normalised_HWC = (scaled_HWC - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return torch.from_numpy(np.ascontiguousarray(normalised_HWC.transpose(2, 0, 1)))


def _resize_short_side(image: Image.Image, short_side: int) -> Image.Image:
    width, height = image.size
    shortest = min(width, height)
    target = int(short_side * width / shortest), int(short_side * height / shortest)
    return image if target == image.size else image.resize(target, Image.Resampling.BICUBIC)
