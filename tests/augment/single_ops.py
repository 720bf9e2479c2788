"""One op on one image, on the CPU."""

import numpy as np

from fastft.augment.levels import level_argument
from fastft.augment.ops_image import op_scratch_size, run_op
from fastft.augment.plan import OP_ID, OPS
from tests.augment.pillow_oracle import FILL


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
    return apply_argument(OPS[op], image_HWC, argument, bicubic=bicubic)
