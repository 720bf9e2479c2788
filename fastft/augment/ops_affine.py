"""Rotate, shear and translate: Pillow's affine transform in float64, operation by operation."""

import math

import numpy as np
from numba import njit

from fastft.augment.plan import OP_ID

ROTATE, SHEAR_X, SHEAR_Y = OP_ID["Rotate"], OP_ID["ShearX"], OP_ID["ShearY"]
TRANSLATE_X, TRANSLATE_Y = OP_ID["TranslateX"], OP_ID["TranslateY"]
DECIMALS = 1e15  # Pillow rounds the sine and cosine of a rotation to 15 decimals


@njit(cache=True)
def affine_matrix(op, argument, height, width):  # type: ignore[no-untyped-def]
    """(a, b, c, d, e, f): output pixel centre (x, y) shows the source at (ax + by + c, dx + ey + f)."""
    if op == ROTATE:
        angle = -math.radians(argument % 360.0)
        cos = np.rint(math.cos(angle) * DECIMALS) / DECIMALS
        sin = np.rint(math.sin(angle) * DECIMALS) / DECIMALS
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
def _cubic(a, b, c, d, t):  # type: ignore[no-untyped-def]
    """Cubic through four neighbours at t in [0, 1) between b and c (a = -1, as Pillow's transform)."""
    a, b, c, d = np.float64(a), np.float64(b), np.float64(c), np.float64(d)
    return b + t * ((-a + c) + t * ((2.0 * (a - b) + c - d) + t * (-a + b - c + d)))


@njit(cache=True)
def _cubic_row(pixels, row, x0, x1, x2, x3, t):  # type: ignore[no-untyped-def]
    if t == 0.0:
        return np.float64(pixels[row + x1])
    return _cubic(pixels[row + x0], pixels[row + x1], pixels[row + x2], pixels[row + x3], t)


@njit(cache=True)
def _clamp(i, size):  # type: ignore[no-untyped-def]
    return min(max(i, 0), size - 1)


@njit(cache=True)
def _truncate(value):  # type: ignore[no-untyped-def]
    return np.uint8(np.int32(min(max(value, 0.0), 255.0)))


@njit(cache=True)
def sample_bicubic(pixels, height, width, x, y, target, to):  # type: ignore[no-untyped-def]
    """target[to : to + 3] = the image (flat uint8) at (x, y) inside it. Centres on halves; edges repeat.

    A coordinate on a pixel centre (all of y in ShearX and TranslateX) needs one row or column of the 4 x 4.
    """
    x, y = x - 0.5, y - 0.5
    column, line = np.int64(np.floor(x)), np.int64(np.floor(y))
    tx, ty = x - column, y - line
    x0, x1 = 3 * _clamp(column - 1, width), 3 * _clamp(column, width)
    x2, x3 = 3 * _clamp(column + 1, width), 3 * _clamp(column + 2, width)
    pitch = 3 * width
    r1 = pitch * _clamp(line, height)
    if ty == 0.0:
        for c in range(3):
            target[to + c] = _truncate(_cubic_row(pixels, r1 + c, x0, x1, x2, x3, tx))
        return
    r0 = pitch * _clamp(line - 1, height)
    r2, r3 = pitch * _clamp(line + 1, height), pitch * _clamp(line + 2, height)
    for c in range(3):
        a = _cubic_row(pixels, r0 + c, x0, x1, x2, x3, tx)
        b = _cubic_row(pixels, r1 + c, x0, x1, x2, x3, tx)
        d = _cubic_row(pixels, r2 + c, x0, x1, x2, x3, tx)
        e = _cubic_row(pixels, r3 + c, x0, x1, x2, x3, tx)
        target[to + c] = _truncate(_cubic(a, b, d, e, ty))


@njit(cache=True)
def sample_bilinear(pixels, height, width, x, y, target, to):  # type: ignore[no-untyped-def]
    """As `sample_bicubic`, over 2 x 2 pixels."""
    x, y = x - 0.5, y - 0.5
    column, line = np.int64(np.floor(x)), np.int64(np.floor(y))
    tx, ty = x - column, y - line
    x0, x1 = 3 * _clamp(column, width), 3 * _clamp(column + 1, width)
    r0, r1 = 3 * width * _clamp(line, height), 3 * width * _clamp(line + 1, height)
    for c in range(3):
        a, b = np.float64(pixels[r0 + x0 + c]), np.float64(pixels[r0 + x1 + c])
        d, e = np.float64(pixels[r1 + x0 + c]), np.float64(pixels[r1 + x1 + c])
        a, d = a + (b - a) * tx, d + (e - d) * tx
        target[to + c] = _truncate(a + (d - a) * ty)


@njit(cache=True)
def affine_pixel(pixels, height, width, matrix, i, j, fill, bicubic, target, to):  # type: ignore[no-untyped-def]
    """Output pixel (row i, column j) of the transform: sampled, or `fill` where it looks past the image."""
    a, b, c, d, e, f = matrix
    x = a * (j + 0.5) + b * (i + 0.5) + c
    y = d * (j + 0.5) + e * (i + 0.5) + f
    if x < 0.0 or x >= width or y < 0.0 or y >= height:
        target[to], target[to + 1], target[to + 2] = fill[0], fill[1], fill[2]
    elif bicubic:
        sample_bicubic(pixels, height, width, x, y, target, to)
    else:
        sample_bilinear(pixels, height, width, x, y, target, to)
