"""The arithmetic of every op, one pixel or one table entry at a time. Both back ends use this one source.

The functions are scalar, on explicit types, without allocation or Python objects, so CPU loops (ops_image.py) and
CUDA kernels alike can call them. Each gives the result of Pillow 13's op with the same name, including float32
roundings. A compiler that contracts a*b + c into one rounding breaks this, so CUDA kernels must be built without
contraction.

See plan.py for the ops' names, numbers and kinds, and policies.py for lists of ops. Geometric ops are Pillow's affine
transform in float64, operation by operation.
"""

import math

import numpy as np

from beton_tools.base.jit import njit
from beton_tools.base.pixels import CHANNELS
from fastft.augment.plan import AFFINE, OP_ID, OPS, POINT, TABLE

IDENTITY = OP_ID["Identity"]
AUTO_CONTRAST = OP_ID["AutoContrast"]
EQUALIZE = OP_ID["Equalize"]
INVERT = OP_ID["Invert"]
ROTATE = OP_ID["Rotate"]
POSTERIZE = OP_ID["Posterize"]
SOLARIZE = OP_ID["Solarize"]
SOLARIZE_ADD = OP_ID["SolarizeAdd"]
COLOR = OP_ID["Color"]
CONTRAST = OP_ID["Contrast"]
BRIGHTNESS = OP_ID["Brightness"]
SHARPNESS = OP_ID["Sharpness"]
SHEAR_X = OP_ID["ShearX"]
SHEAR_Y = OP_ID["ShearY"]
TRANSLATE_X = OP_ID["TranslateX"]
GRAYSCALE = OP_ID["Grayscale"]
GAUSSIAN_BLUR = OP_ID["GaussianBlur"]
# bit k is set if op k is of that kind
POINTS, TABLES, AFFINES = (
    sum(1 << k for k, op in enumerate(OPS) if op.kind == kind) for kind in (POINT, TABLE, AFFINE)
)

BYTE_VALUES = 256
ENTRIES = CHANNELS * BYTE_VALUES  # entries in the tables for an image's channels
STATISTICS = ENTRIES + 2 * CHANNELS  # int32 values that `table_entry` reads
SOLARIZE_ADD_BELOW = 128  # timm's threshold
BLUR_PASSES = 3  # box passes per direction in Pillow's GaussianBlur
BOX_ONE = 1 << 24  # fixed-point 1 of Pillow's box blur
DECIMALS = 1e15  # Pillow rounds a rotation's sine and cosine to 15 decimals


@njit()
def clip_byte(value):
    """Convert float32 to uint8: clip, then truncate as C does."""
    return np.uint8(np.int32(min(max(value, np.float32(0.0)), np.float32(255.0))))


@njit()
def blend(a, b, factor):
    """Blend two bytes as Pillow's Image.blend: a at factor 0, b at 1, extrapolated outside, float32, truncated."""
    return clip_byte(np.float32(a) + factor * (np.float32(b) - np.float32(a)))


@njit()
def luma(red, green, blue):
    """Convert to "L" as Pillow does: ITU-R 601-2 in 16-bit fixed point."""
    return (np.int32(red) * 19595 + np.int32(green) * 38470 + np.int32(blue) * 7471 + 0x8000) >> 16


# -- points and tables -------------------------------------------------------------------------------------------------


@njit()
def is_point(op):
    return POINTS >> op & 1 == 1


@njit()
def is_table(op):
    return TABLES >> op & 1 == 1


@njit()
def point_entry(op, value, argument, mean):
    """Return a byte's new value for the ops that treat every byte alike.

    Args:
        mean: the image's `mean_luma` for Contrast, else 0.
    """
    if op == INVERT:
        return np.uint8(255 - value)
    if op == POSTERIZE:  # 0 bits give black, as in Pillow before 13
        return np.uint8(value & (0xFF00 >> np.int32(argument)))
    if op == SOLARIZE:
        return np.uint8(value if value < np.int32(argument) else 255 - value)
    if op == SOLARIZE_ADD:
        return np.uint8(min(value + np.int32(argument), 255) if value < SOLARIZE_ADD_BELOW else value)
    return blend(mean, value, np.float32(argument))  # Brightness, Contrast


@njit()
def mean_luma(luma_sum, pixels):
    return np.int32(luma_sum / pixels + 0.5)


@njit()
def table_entry(op, i, argument, statistics):
    """Return entry i = 256 * channel + value for the ops that have a table for each channel.

    Args:
        statistics: (STATISTICS,) int32, measured on the image. For Equalize, it has for every entry the number of
            pixels in the channel with lesser values and, from ENTRIES on, each channel's step. For AutoContrast, it
            has from ENTRIES on each channel's least value, then each channel's greatest value.
    """
    channel, value = i // BYTE_VALUES, i % BYTE_VALUES
    if op == EQUALIZE:
        step = statistics[ENTRIES + channel]
        return np.uint8(min((step // 2 + statistics[i]) // step, 255)) if step > 0 else np.uint8(value)
    low, high = statistics[ENTRIES + channel], statistics[ENTRIES + CHANNELS + channel]  # AutoContrast
    if high <= low:
        return np.uint8(value)
    scale = 255.0 / (high - low)
    return np.uint8(min(max(np.int32(value * scale + -low * scale), 0), 255))


@njit()
def accumulate(statistics, channel):
    """Turn a channel's histogram into Equalize's statistics, in place.

    The step is the number of pixels per output level. 0 means no change.
    """
    below, last = np.int32(0), np.int32(0)
    for i in range(channel * BYTE_VALUES, (channel + 1) * BYTE_VALUES):
        number = statistics[i]
        last = number if number > 0 else last
        statistics[i] = below
        below += number
    statistics[ENTRIES + channel] = (below - last) // 255


# -- colour and neighbourhood ------------------------------------------------------------------------------------------


@njit()
def smooth(box_sum, centre):
    """Apply Pillow's SMOOTH filter: weights 1 round a 5, over 13, rounded. `box_sum` is the sum over all nine pixels.

    It uses integers: the float32 error in Pillow's sum never reaches the nearest tie, 1/26 away.
    """
    return (2 * (np.int32(box_sum) + 4 * np.int32(centre)) + 13) // 26


@njit()
def box_weights(sigma):
    """Return (radius, inner weight, edge weight) for the box that Pillow repeats three times for a Gaussian blur.

    This is the extended box filter in Gwosdek et al. (2011), equations 7, 11 and 14, in float32 as in Pillow.
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


@njit()
def box_byte(inner_sum, edge_sum, inner, edge):
    """Return a box blur's byte from the sum within the radius and the sum of the two pixels just beyond (uint32)."""
    return np.uint8((inner_sum * inner + edge_sum * edge + np.uint32(BOX_ONE >> 1)) >> np.uint32(24))


# -- geometric ops -----------------------------------------------------------------------------------------------------


@njit()
def is_affine(op):
    return AFFINES >> op & 1 == 1


@njit()
def affine_matrix(op, argument, height, width):
    """Return (a, b, c, d, e, f): output pixel centre (x, y) shows the source at (ax + by + c, dx + ey + f)."""
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


@njit()
def _read_byte(pixels, i):
    """Read a byte as float64. The unsigned index spares Numba's test for a negative one."""
    return np.float64(pixels[np.uintp(i)])


@njit()
def truncate(value):
    """Convert float64 to uint8: clip, then truncate as C does."""
    return np.uint8(np.int32(min(max(value, 0.0), 255.0)))


@njit()
def cubic(a, b, c, d, t):
    """Interpolate between b and c at t in [0, 1) by a cubic through four neighbours (a = -1, as Pillow's transform)."""
    return b + t * ((c - a) + t * ((2.0 * (a - b) + c - d) + t * (b - a - c + d)))


@njit()
def linear(a, b, t):
    """Interpolate linearly between two neighbours at t in [0, 1)."""
    return a + (b - a) * t


# Both are given as weights for four neighbours. `linear` does not use the outer two. Row k is for t to the power k.
CUBIC = ((0, 1, 0, 0), (-1, 0, 1, 0), (2, -2, 1, -1), (-1, 1, -1, 1))
LINEAR = ((0, 1, 0, 0), (0, -1, 1, 0))


@njit()
def _clamp(i, size):
    return min(max(i, 0), size - 1)


@njit()
def _cubic_row(pixels, row, x0, x1, x2, x3, t):
    if t == 0.0:
        return _read_byte(pixels, row + x1)
    left, right = _read_byte(pixels, row + x0), _read_byte(pixels, row + x3)
    return cubic(left, _read_byte(pixels, row + x1), _read_byte(pixels, row + x2), right, t)


@njit()
def sample_bicubic(pixels, height, width, x, y, channel):
    """Return the image (flat uint8) at (x, y) inside it. Pixel centres are at halves, and edge pixels repeat.

    If a coordinate is on a pixel centre (every y in ShearX and TranslateX), only one row or column of the 4 x 4 is
    needed.
    """
    x, y = x - 0.5, y - 0.5
    column, line = np.int64(math.floor(x)), np.int64(math.floor(y))  # CUDA's floor gives a float
    tx, ty = x - column, y - line
    x0, x1 = 3 * _clamp(column - 1, width) + channel, 3 * _clamp(column, width) + channel
    x2, x3 = 3 * _clamp(column + 1, width) + channel, 3 * _clamp(column + 2, width) + channel
    pitch = 3 * width
    b = _cubic_row(pixels, pitch * _clamp(line, height), x0, x1, x2, x3, tx)
    if ty == 0.0:
        return b
    a = _cubic_row(pixels, pitch * _clamp(line - 1, height), x0, x1, x2, x3, tx)
    c = _cubic_row(pixels, pitch * _clamp(line + 1, height), x0, x1, x2, x3, tx)
    d = _cubic_row(pixels, pitch * _clamp(line + 2, height), x0, x1, x2, x3, tx)
    return cubic(a, b, c, d, ty)


@njit()
def sample_bilinear(pixels, height, width, x, y, channel):
    """Return the same as `sample_bicubic`, interpolated over 2 x 2 pixels."""
    x, y = x - 0.5, y - 0.5
    column, line = np.int64(math.floor(x)), np.int64(math.floor(y))  # CUDA's floor gives a float
    tx, ty = x - column, y - line
    x0, x1 = 3 * _clamp(column, width) + channel, 3 * _clamp(column + 1, width) + channel
    r0, r1 = 3 * width * _clamp(line, height), 3 * width * _clamp(line + 1, height)
    a, b = _read_byte(pixels, r0 + x0), _read_byte(pixels, r0 + x1)
    c, d = _read_byte(pixels, r1 + x0), _read_byte(pixels, r1 + x1)
    return linear(linear(a, b, tx), linear(c, d, tx), ty)


@njit()
def affine_source(matrix, i, j):
    """Return (x, y) in the source for the centre of the output pixel in row i, column j."""
    a, b, c, d, e, f = matrix
    x, y = j + 0.5, i + 0.5
    return a * x + b * y + c, d * x + e * y + f


@njit()
def inside(x, y, height, width):
    """Return True if (x, y) shows the image and not the fill colour."""
    return 0.0 <= x < width and 0.0 <= y < height
