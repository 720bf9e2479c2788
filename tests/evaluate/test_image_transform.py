"""The evaluation input of an image is bit for bit that of torchvision's transforms."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from fastft.evaluate.image_files import eval_tensor

SIZES = [(64, 64), (65, 64), (64, 91), (333, 200), (200, 333), (37, 411), (500, 375), (9, 5)]


COLOURS = {"mean": (0.48, 0.46, 0.41), "std": (0.27, 0.26, 0.28)}


def torchvision_tensor(image: Image.Image, size: int, crop_pct: float) -> torch.Tensor:
    bicubic = transforms.InterpolationMode.BICUBIC
    transform = transforms.Compose(
        [
            transforms.Resize(math.floor(size / crop_pct), bicubic),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(**COLOURS),
        ]
    )
    return transform(image.convert("RGB"))


@pytest.mark.parametrize("crop_pct", [1.0, 0.875, 0.95])
@pytest.mark.parametrize("size", [64, 65])
def test_the_input_is_torchvisions(size: int, crop_pct: float, photographs: dict[str, np.ndarray]) -> None:
    for image in photographs.values():
        for height, width in SIZES:
            cut = Image.fromarray(np.ascontiguousarray(image[:height, :width]))
            ours = eval_tensor(cut, size=size, crop_pct=crop_pct, **COLOURS)
            assert torch.equal(ours, torchvision_tensor(cut, size, crop_pct)), (height, width)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_images_of_other_modes_are_converted(mode: str, photographs: dict[str, np.ndarray]) -> None:
    image = Image.fromarray(photographs["coffee"]).convert(mode)
    ours = eval_tensor(image, size=96, crop_pct=0.9, **COLOURS)
    assert torch.equal(ours, torchvision_tensor(image, 96, 0.9))
