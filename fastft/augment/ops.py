"""The arithmetic of every op, one pixel or one table entry at a time: the one source of both back ends.

Scalar functions on explicit types, without allocation or Python objects, for CPU loops (ops_image.py) and
CUDA kernels alike. Each gives what Pillow 13 gives for the op of that name, float32 roundings included; a
compiler that contracts a*b + c into one rounding breaks that, so CUDA kernels must be built without it.

Three kinds of op: tables (every channel value is looked up in 256 entries, which may depend on statistics
of the whole image), colour (one pixel), neighbourhood (sharpness, blur; the geometric ones: ops_affine.py).
"""

import math

import numpy as np
from numba import njit

from fastft.augment.plan import OP_ID

AUTO_CONTRAST, EQUALIZE, INVERT = OP_ID["AutoContrast"], OP_ID["Equalize"], OP_ID["Invert"]
POSTERIZE, SOLARIZE, SOLARIZE_ADD = OP_ID["Posterize"], OP_ID["Solarize"], OP_ID["SolarizeAdd"]
CONTRAST, BRIGHTNESS = OP_ID["Contrast"], OP_ID["Brightness"]

BYTE_VALUES = 256
SOLARIZE_ADD_BELOW = 128  # timm's threshold
BLUR_PASSES = 3  # box passes per direction in Pillow's GaussianBlur
BOX_ONE = 1 << 24  # fixed-point 1 of Pillow's box blur


@njit(cache=True)
def clip_byte(value):
    """float32 -> uint8: clipped, then truncated as C does."""
    return np.uint8(np.int32(min(max(value, np.float32(0.0)), np.float32(255.0))))


@njit(cache=True)
def blend(a, b, factor):
    """Pillow's Image.blend of two bytes: a at factor 0, b at 1, beyond outside; float32, truncated."""
    return clip_byte(np.float32(a) + factor * (np.float32(b) - np.float32(a)))


@njit(cache=True)
def luma(red, green, blue):
    """Pillow's conversion to "L": ITU-R 601-2 in 16-bit fixed point."""
    return (np.int32(red) * 19595 + np.int32(green) * 38470 + np.int32(blue) * 7471 + 0x8000) >> 16


# -- tables ------------------------------------------------------------------------------------------------------------


@njit(cache=True)
def point_entry(op, value, argument):
    """Entry `value` of the ops whose table depends on the argument alone."""
    if op == INVERT:
        return np.uint8(255 - value)
    if op == POSTERIZE:  # 0 bits: black, as Pillow before 13 made it
        return np.uint8(value & (0xFF00 >> np.int32(argument)))
    if op == SOLARIZE:
        return np.uint8(value if value < np.int32(argument) else 255 - value)
    if op == SOLARIZE_ADD:
        return np.uint8(min(value + np.int32(argument), 255) if value < SOLARIZE_ADD_BELOW else value)
    return blend(0, value, np.float32(argument))  # Brightness


@njit(cache=True)
def autocontrast_entry(value, low, high):
    """Entry of a channel whose least and greatest values are `low` and `high`."""
    if high <= low:
        return np.uint8(value)
    scale = 255.0 / (high - low)
    return np.uint8(min(max(np.int32(value * scale + -low * scale), 0), 255))


@njit(cache=True)
def equalize_step(total, last):
    """Pixels per output level: `total` in the channel, `last` at its greatest value. 0: leave it as it is."""
    return (total - last) // 255


@njit(cache=True)
def equalize_entry(value, below, step):
    """Entry of a channel where `below` pixels are less than `value`."""
    return np.uint8(min((step // 2 + below) // step, 255)) if step > 0 else np.uint8(value)


@njit(cache=True)
def contrast_entry(value, mean, argument):
    """Entry for an image whose mean luma, rounded by `contrast_mean`, is `mean`."""
    return blend(mean, value, np.float32(argument))


@njit(cache=True)
def contrast_mean(luma_sum, pixels):
    return np.int32(luma_sum / pixels + 0.5)


# -- colour and neighbourhood ------------------------------------------------------------------------------------------


@njit(cache=True)
def smooth(box_sum, centre):
    """Pillow's SMOOTH filter, weights 1 round a 5, over 13, rounded; `box_sum` is of all nine pixels.

    In integers: the float32 error of Pillow's sum never reaches the nearest tie, 1/26 away.
    """
    return (2 * (np.int32(box_sum) + 4 * np.int32(centre)) + 13) // 26


@njit(cache=True)
def box_weights(sigma):
    """(radius, inner weight, edge weight) of the box that Pillow repeats three times for a Gaussian blur.

    The extended box filter of Gwosdek et al. (2011), equations 7, 11 and 14; float32 as in Pillow.
    """
    sigma = np.float32(sigma)
    variance = sigma * sigma / np.float32(BLUR_PASSES)
    length = np.float32(math.sqrt(12.0 * variance + 1.0))
    whole = np.float32(math.floor((length - 1.0) / 2.0))
    one, six = np.float32(1.0), np.float32(6.0)
    part = (whole + whole + one) * (whole * (whole + one) - np.float32(3.0) * variance)
    part /= six * (variance - (whole + one) * (whole + one))
    radius = whole + part
    inner = np.uint32(np.float32(BOX_ONE) / (radius + radius + one))
    reach = np.uint32(radius)
    edge = np.uint32((np.uint32(BOX_ONE) - (reach + reach + np.uint32(1)) * inner) // np.uint32(2))
    return np.int32(reach), inner, edge


@njit(cache=True)
def box_byte(inner_sum, edge_sum, inner, edge):
    """One byte of a box blur: the sum within the radius and of the two pixels just beyond (uint32)."""
    return np.uint8((inner_sum * inner + edge_sum * edge + np.uint32(BOX_ONE >> 1)) >> np.uint32(24))
