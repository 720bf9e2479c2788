"""Results of timm and Pillow for an op at a magnitude, which the tests compare with."""

from unittest import mock

import numpy as np
import PIL
import pytest
from PIL import Image
from timm.data import auto_augment

needs_pillow_13 = pytest.mark.skipif(
    int(PIL.__version__.split(".")[0]) < 13,
    reason="older Pillow resizes in one order of passes; ours chooses as Pillow 13 (Python 3.11 or newer) does",
)
FILL = (123, 117, 104)
RESAMPLE = {True: Image.Resampling.BICUBIC, False: Image.Resampling.BILINEAR}


def timm_op(name: str, image_HWC: np.ndarray, magnitude: float, sign: int = 1, bicubic: bool = True) -> np.ndarray:
    """timm's op with the sign that it would draw; 0 bits of posterise are black, which Pillow 13 refuses."""
    hparams = {"img_mean": FILL, "translate_const": int(0.45 * min(image_HWC.shape[:2]))}
    with mock.patch.object(auto_augment, "_randomly_negate", lambda value: sign * value):
        level = auto_augment.LEVEL_TO_ARG[name]
        arguments = level(magnitude, hparams) if level else ()
    if "Posterize" in name and arguments[0] < 1:
        return np.zeros_like(image_HWC)
    function = auto_augment.NAME_TO_OP[name]
    options = {"fillcolor": FILL, "resample": RESAMPLE[bicubic]}
    return np.asarray(function(Image.fromarray(image_HWC), *arguments, **options))


def pillow_resized_crop(
    image_HWC: np.ndarray, box_yxhw: tuple[int, ...], size_hw: tuple[int, int], bicubic: bool = True
) -> np.ndarray:
    y, x, h, w = box_yxhw
    cropped = Image.fromarray(image_HWC).crop((x, y, x + w, y + h))
    return np.array(cropped.resize(size_hw[::-1], RESAMPLE[bicubic]))
