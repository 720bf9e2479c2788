"""Random erasing in a normalised image, and the half-precision bit patterns in which it is stored."""

import numpy as np

from beton_tools.base.jit import njit
from fastft.augment.rng import HALF_NORMAL, noise_rgb
from fastft.recipe.constants import ERASE_MODES, MAX_ERASE

# an output stores float32, the uint16 bits of the next two types, or bytes as they are
FLOAT32, FLOAT16, BFLOAT16, UINT8 = range(4)
DTYPES = ("float32", "float16", "bfloat16")
SMALLEST_NORMAL = np.float32(2.0**-14)  # of float16
CONST, RAND = ERASE_MODES.index("const"), ERASE_MODES.index("rand")


@njit()
def bfloat16_bits(value):
    """Round float32 to bfloat16, to nearest even."""
    bits = np.float32(value).view(np.uint32)
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@njit()
def float16_bits(value):
    """Round float32 within float16's range to float16, to nearest even."""
    bits = np.float32(value).view(np.uint32)
    sign = (bits >> np.uint32(16)) & np.uint32(0x8000)
    half = np.float32(0.5)
    if abs(value) < SMALLEST_NORMAL:  # the sum with 0.5 rounds to float16's step there, 2^-24
        return np.uint16(sign | (np.float32(abs(value) + half).view(np.uint32) - half.view(np.uint32)))
    rounding = np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1))
    size = (bits & np.uint32(0x7FFFFFFF)) + rounding - np.uint32(0x38000000)  # exponent bias 127 -> 15
    return np.uint16(sign | (size >> np.uint32(13)))


@njit()
def store(out, i, value, dtype):
    """Set out[i] = value (float32), stored as `dtype`."""
    if dtype == FLOAT32:
        out[i] = value
    elif dtype == FLOAT16:
        out[i] = float16_bits(value)
    else:
        out[i] = bfloat16_bits(value)


@njit()
def erase_pixel(noise_key, mode, box, pixel, quantiles, out, dtype):
    """Write one erased output pixel (`pixel` = y*size + x) in box number `box`: 0, the box's noise or its own noise."""
    i = 3 * pixel
    if mode == CONST:
        red = green = blue = np.float32(0.0)
    else:
        red, green, blue = noise_rgb(noise_key, box if mode == RAND else pixel, quantiles)
    store(out, i, red, dtype)
    store(out, i + 1, green, dtype)
    store(out, i + 2, blue, dtype)


@njit()
def erase(row, size, out, dtype):
    """Erase all boxes in a plan row, in their order. `out` is flat, size*size*3, normalised."""
    for box in range(MAX_ERASE):
        top, left, height, width = row.erase[box]
        for y in range(top, top + height):
            for x in range(left, left + width):
                erase_pixel(row.noise_key, row.erase_mode, box, y * size + x, HALF_NORMAL, out, dtype)
