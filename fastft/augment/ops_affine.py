"""Rotate, shear and translate: Pillow's affine transform in float64, operation by operation.

The sampling functions take the function that reads: one channel as a scalar in a kernel, a whole pixel as a
vector on the CPU. Both do the same operations in the same order. (Numba cannot cache a function that takes a
function; what calls them is cached.)
"""

import math

import numpy as np
from numba import njit

from fastft.augment.plan import OP_ID

ROTATE, SHEAR_X, SHEAR_Y = OP_ID["Rotate"], OP_ID["ShearX"], OP_ID["ShearY"]
TRANSLATE_X, TRANSLATE_Y = OP_ID["TranslateX"], OP_ID["TranslateY"]
DECIMALS = 1e15  # Pillow rounds the sine and cosine of a rotation to 15 decimals


@njit(cache=True)
def is_affine(op):
    return op == ROTATE or SHEAR_X <= op <= TRANSLATE_Y


@njit(cache=True)
def affine_matrix(op, argument, height, width):
    """(a, b, c, d, e, f): output pixel centre (x, y) shows the source at (ax + by + c, dx + ey + f)."""
    if op == ROTATE:
        angle = -math.radians(argument % 360.0)
        cos = round(math.cos(angle) * DECIMALS) / DECIMALS
        sin = round(math.sin(angle) * DECIMALS) / DECIMALS
        x, y = width / 2.0, height / 2.0
        return cos, sin, cos * -x + sin * -y + x, -sin, cos, -sin * -x + cos * -y + y
    if op == SHEAR_X:
        return 1.0, argument, 0.0, 0.0, 1.0, 0.0
    if op == SHEAR_Y:
        return 1.0, 0.0, 0.0, argument, 1.0, 0.0
    if op == TRANSLATE_X:
        return 1.0, 0.0, argument, 0.0, 1.0, 0.0
    return 1.0, 0.0, 0.0, 0.0, 1.0, argument


@njit(cache=True)
def read_byte(pixels, i):
    """One channel of a pixel as float64: the `read` of a kernel. The CPU reads a whole pixel (load_pixel)."""
    return np.float64(pixels[i])


@njit(cache=True)
def truncate(value):
    """float64 -> uint8: clipped, then truncated as C does."""
    return np.uint8(np.int32(min(max(value, 0.0), 255.0)))


@njit(cache=True)
def cubic(a, b, c, d, t):
    """Cubic through four neighbours at t in [0, 1) between b and c (a = -1, as Pillow's transform)."""
    return b + t * ((c - a) + t * ((2.0 * (a - b) + c - d) + t * (b - a - c + d)))


@njit(cache=True)
def linear(a, b, t):
    """Between two neighbours at t in [0, 1)."""
    return a + (b - a) * t


# Both as weights of four neighbours, of which the outer two are nothing to `linear`: row k is for t to the power of k.
CUBIC = ((0, 1, 0, 0), (-1, 0, 1, 0), (2, -2, 1, -1), (-1, 1, -1, 1))
LINEAR = ((0, 1, 0, 0), (0, -1, 1, 0))


@njit(cache=True)
def _clamp(i, size):
    return min(max(i, 0), size - 1)


@njit
def _cubic_row(read, pixels, row, x0, x1, x2, x3, t):
    if t == 0.0:
        return read(pixels, row + x1)
    left, right = read(pixels, row + x0), read(pixels, row + x3)
    return cubic(left, read(pixels, row + x1), read(pixels, row + x2), right, t)


@njit
def sample_bicubic(read, pixels, height, width, x, y, channel):
    """The image (flat uint8) at (x, y) inside it. Pixels centre on halves; edges repeat.

    A coordinate on a pixel centre (all of y in ShearX and TranslateX) needs one row or column of the 4 x 4.
    """
    x, y = x - 0.5, y - 0.5
    column, line = np.int64(math.floor(x)), np.int64(math.floor(y))  # CUDA's floor gives a float
    tx, ty = x - column, y - line
    x0, x1 = 3 * _clamp(column - 1, width) + channel, 3 * _clamp(column, width) + channel
    x2, x3 = 3 * _clamp(column + 1, width) + channel, 3 * _clamp(column + 2, width) + channel
    pitch = 3 * width
    b = _cubic_row(read, pixels, pitch * _clamp(line, height), x0, x1, x2, x3, tx)
    if ty == 0.0:
        return b
    a = _cubic_row(read, pixels, pitch * _clamp(line - 1, height), x0, x1, x2, x3, tx)
    c = _cubic_row(read, pixels, pitch * _clamp(line + 1, height), x0, x1, x2, x3, tx)
    d = _cubic_row(read, pixels, pitch * _clamp(line + 2, height), x0, x1, x2, x3, tx)
    return cubic(a, b, c, d, ty)


@njit
def sample_bilinear(read, pixels, height, width, x, y, channel):
    """The same as `sample_bicubic`, over 2 x 2 pixels."""
    x, y = x - 0.5, y - 0.5
    column, line = np.int64(math.floor(x)), np.int64(math.floor(y))  # CUDA's floor gives a float
    tx, ty = x - column, y - line
    x0, x1 = 3 * _clamp(column, width) + channel, 3 * _clamp(column + 1, width) + channel
    r0, r1 = 3 * width * _clamp(line, height), 3 * width * _clamp(line + 1, height)
    a, b = read(pixels, r0 + x0), read(pixels, r0 + x1)
    c, d = read(pixels, r1 + x0), read(pixels, r1 + x1)
    return linear(linear(a, b, tx), linear(c, d, tx), ty)


@njit(cache=True)
def affine_source(matrix, i, j):
    """(x, y) in the source of the centre of output row i, column j."""
    a, b, c, d, e, f = matrix
    x, y = j + 0.5, i + 0.5
    return a * x + b * y + c, d * x + e * y + f


@njit(cache=True)
def inside(x, y, height, width):
    """True if (x, y) shows the image and not the fill colour."""
    return 0.0 <= x < width and 0.0 <= y < height
