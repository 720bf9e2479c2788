"""timm's op names: which op of the plan each is, and what a magnitude on the 0..10 scale means for it.

The formulae are those of timm's `auto_augment.py` in the same floating-point order: a magnitude gives the
very argument that timm would hand to Pillow.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from beton_tools.base.errors import UserError
from fastft.augment.plan import OP_ID

DENOMINATOR = 10.0  # magnitudes are tenths of the full effect

(
    NO_ARGUMENT, ROTATE, SHEAR, TRANSLATE_X_SHARE, TRANSLATE_Y_SHARE, ENHANCE, ENHANCE_INCREASING, POSTERIZE,
    POSTERIZE_INCREASING, SOLARIZE, SOLARIZE_INCREASING, SOLARIZE_ADD, DESATURATE, BLUR,
) = range(14)  # fmt: skip

ENHANCERS = ("Color", "Contrast", "Brightness", "Sharpness")
# timm's name -> (name in plan.OPS, rule that turns a magnitude into the op's argument)
TIMM_OPS: dict[str, tuple[str, int]] = {
    **{name: (name, NO_ARGUMENT) for name in ("AutoContrast", "Equalize", "Invert")},
    **{name: (name, ENHANCE) for name in ENHANCERS},
    **{f"{name}Increasing": (name, ENHANCE_INCREASING) for name in ENHANCERS},
    "Rotate": ("Rotate", ROTATE),
    "Posterize": ("Posterize", POSTERIZE),
    "PosterizeIncreasing": ("Posterize", POSTERIZE_INCREASING),
    "Solarize": ("Solarize", SOLARIZE),
    "SolarizeIncreasing": ("Solarize", SOLARIZE_INCREASING),
    "SolarizeAdd": ("SolarizeAdd", SOLARIZE_ADD),
    **{f"Shear{axis}": (f"Shear{axis}", SHEAR) for axis in "XY"},
    "TranslateXRel": ("TranslateX", TRANSLATE_X_SHARE),
    "TranslateYRel": ("TranslateY", TRANSLATE_Y_SHARE),
    "Desaturate": ("Color", DESATURATE),
    "GaussianBlur": ("GaussianBlur", BLUR),
}


def op_of(name: str) -> int:
    """Position in `plan.OPS` of the op that timm calls `name`."""
    return OP_ID[TIMM_OPS[name][0]]


@njit(cache=True)
def _clamp(value, low, high):
    return max(low, min(high, value))


@njit(cache=True)
def argument(rule, magnitude, sign, height, width):
    """Argument (float64) of an op at `magnitude` >= 0; `sign` is +1 or -1, where timm negates at random.

    The height and width of the image count for translations only.
    """
    level = magnitude / DENOMINATOR
    value = 0.0
    if rule == ROTATE:
        value = sign * (level * 30.0)
    elif rule == SHEAR:
        value = sign * (level * 0.3)
    elif rule == TRANSLATE_X_SHARE:
        value = sign * (level * 0.45) * width
    elif rule == TRANSLATE_Y_SHARE:
        value = sign * (level * 0.45) * height
    elif rule == ENHANCE:
        value = level * 1.8 + 0.1
    elif rule == ENHANCE_INCREASING:
        value = max(0.1, 1.0 + sign * (level * 0.9))
    elif rule == POSTERIZE:
        value = np.floor(level * 4)
    elif rule == POSTERIZE_INCREASING:  # 0 bits from magnitude 10: a black image, as Pillow before 13 made it
        value = max(0.0, 4 - np.floor(level * 4))
    elif rule == SOLARIZE:
        value = min(256.0, np.floor(level * 256))
    elif rule == SOLARIZE_INCREASING:
        value = 256 - min(256.0, np.floor(level * 256))
    elif rule == SOLARIZE_ADD:
        value = min(128.0, np.floor(level * 110))
    elif rule == DESATURATE:  # an enhance factor: 0 is grey
        value = _clamp(1.0 - _clamp(0.5 + 0.5 * level, 0.5, 1.0), 0.0, 1.0)
    elif rule == BLUR:
        value = _clamp(0.1 + (2.0 - 0.1) * level, 0.1, 2.0)
    return value


def level_argument(name: str, magnitude: float, sign: int = 1, *, height: int, width: int) -> tuple[int, float]:
    """(op id, argument) that a plan holds for timm's op `name` on an image of height x width.

    Names of `plan.OPS` that timm lacks (Identity, Grayscale) take no argument. Raises UserError: the name is unknown, the
    magnitude negative or the sign neither +1 nor -1.
    """
    if sign not in (1, -1) or not magnitude >= 0:
        raise UserError(f"magnitude {magnitude} with sign {sign}: give a magnitude >= 0 and the sign 1 or -1")
    if name not in TIMM_OPS and name not in OP_ID:
        raise UserError(f"unknown op {name!r}: use one of {', '.join(sorted({*TIMM_OPS, *OP_ID}))}")
    op, rule = TIMM_OPS.get(name, (name, NO_ARGUMENT))
    return OP_ID[op], float(argument(rule, float(magnitude), float(sign), height, width))
