"""One op on one image: on the CPU, and by timm and Pillow."""

import platform
from unittest import mock

import numpy as np
import PIL
import pytest
from PIL import Image
from timm.data import auto_augment

from fastft.augment.levels import argument
from fastft.augment.ops_image import op_scratch_size, run_op
from fastft.augment.plan import OP_ID, OPS, TIMM_OPS

needs_pillow_13 = pytest.mark.skipif(
    int(PIL.__version__.split(".")[0]) < 13,
    reason="older Pillow resizes in one order of passes; ours chooses as Pillow 13 (Python 3.11 or newer) does",
)
# On aarch64, gcc fuses a*b + c into one rounding, and Pillow's own wheel there differs from the one for x86-64 by a grey level
# (13.0.0: 623 fused instructions in _imaging, none on x86-64). Our pixels are those of x86-64: tests/golden has their hashes.
PILLOW_IS_FUSED = platform.machine() == "aarch64"
FUSED_SHARE = 0.02  # of an image's values may differ; seen: 1.3 % of a photograph's
FUSED_VALUES = 5  # may differ in an image too small for that share; seen: 4 of 60
FILL = (123, 117, 104)
RESAMPLE = {True: Image.Resampling.BICUBIC, False: Image.Resampling.BILINEAR}


def level_argument(name: str, magnitude: float, sign: int = 1, *, height: int, width: int) -> tuple[int, float]:
    """(op id, argument) that a plan holds for timm's op `name` on an image of height x width."""
    op, rule = TIMM_OPS[name]
    return op, float(argument(rule, float(magnitude), float(sign), height, width))


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


def assert_equals_pillow(ours: np.ndarray, pillows: np.ndarray, what: str = "") -> None:
    """Every value is equal. On aarch64 a few may differ by one grey level, see PILLOW_IS_FUSED."""
    if not PILLOW_IS_FUSED:
        np.testing.assert_array_equal(ours, pillows, what)
        return
    difference = np.abs(ours.astype(np.int16) - pillows)
    assert ours.shape == pillows.shape and difference.max(initial=0) <= 1, what
    assert np.count_nonzero(difference) <= max(FUSED_VALUES, FUSED_SHARE * difference.size), what


def pillow_resized_crop(
    image_HWC: np.ndarray, box_yxhw: tuple[int, ...], size_hw: tuple[int, int], bicubic: bool = True
) -> np.ndarray:
    y, x, h, w = box_yxhw
    cropped = Image.fromarray(image_HWC).crop((x, y, x + w, y + h))
    return np.array(cropped.resize(size_hw[::-1], RESAMPLE[bicubic]))


def apply_argument(name: str, image_HWC: np.ndarray, argument: float = 0.0, *, bicubic: bool = True) -> np.ndarray:
    """The op of that name in plan.OPS, by its resolved argument."""
    height, width = image_HWC.shape[:2]
    source = np.append(image_HWC, np.uint8(0))[:-1]
    target, scratch = np.empty_like(source), np.empty(op_scratch_size(height, width), np.uint8)
    fill = np.array(FILL, np.uint8)
    run_op(OP_ID[name], float(argument), source, target, height, width, fill, bicubic, scratch)
    return target.reshape(image_HWC.shape)


def apply_op(
    name: str, image_HWC: np.ndarray, magnitude: float = 0.0, sign: int = 1, *, bicubic: bool = True
) -> np.ndarray:
    """timm's op `name` at a magnitude of 0..10."""
    height, width = image_HWC.shape[:2]
    op, argument = level_argument(name, magnitude, sign, height=height, width=width)
    return apply_argument(OPS[op].name, image_HWC, argument, bicubic=bicubic)
