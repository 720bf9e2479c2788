"""Convert a magnitude on the 0..10 scale into each op's argument.

The formulae come from timm's `auto_augment.py`, in the same floating-point order: a magnitude gives exactly the
argument that timm would pass to Pillow.
"""

from __future__ import annotations

import numpy as np

from beton_tools.base.jit import njit
from fastft.augment.plan import Rule

DENOMINATOR = 10.0  # magnitudes are tenths of the full effect


@njit()
def argument(rule, magnitude, sign, height, width):
    """Return an op's argument (float64) at `magnitude` >= 0. `sign` is +1 or -1, where timm negates at random.

    The image height and width matter only for translations.
    """
    level = magnitude / DENOMINATOR
    value = 0.0
    if rule == Rule.ROTATE:
        value = sign * (level * 30.0)
    elif rule == Rule.SHEAR:
        value = sign * (level * 0.3)
    elif rule == Rule.TRANSLATE_X:
        value = sign * (level * 0.45) * width
    elif rule == Rule.TRANSLATE_Y:
        value = sign * (level * 0.45) * height
    elif rule == Rule.ENHANCE:
        value = level * 1.8 + 0.1
    elif rule == Rule.ENHANCE_INCREASING:
        value = max(0.1, 1.0 + sign * (level * 0.9))
    elif rule == Rule.POSTERIZE:
        value = np.floor(level * 4)
    elif rule == Rule.POSTERIZE_INCREASING:  # 0 bits from magnitude 10: a black image, as Pillow before 13 made it
        value = max(0.0, 4 - np.floor(level * 4))
    elif rule == Rule.SOLARIZE:
        value = min(256.0, np.floor(level * 256))
    elif rule == Rule.SOLARIZE_INCREASING:
        value = 256 - min(256.0, np.floor(level * 256))
    elif rule == Rule.SOLARIZE_ADD:
        value = min(128.0, np.floor(level * 110))
    elif rule == Rule.DESATURATE:  # an enhance factor: 0 is grey
        value = 1.0 - min(1.0, 0.5 + 0.5 * level)
    elif rule == Rule.BLUR:
        value = min(2.0, 0.1 + (2.0 - 0.1) * level)
    return value
