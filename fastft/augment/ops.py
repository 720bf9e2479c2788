"""The arithmetic of every op, one pixel or one table entry at a time: the one source of both back ends.

Scalar functions on explicit types, without allocation or Python objects, for CPU loops (ops_image.py) and
CUDA kernels alike. Each gives what Pillow 13 gives for the op of that name, float32 roundings included; a
compiler that contracts a*b + c into one rounding breaks that, so CUDA kernels must be built without it.

Names, numbers and kinds of the ops: plan.py; lists of them: policies.py. Geometric ops are Pillow's affine transform in
float64, operation by operation.
"""

import math

import numpy as np

from beton_tools.base.image_formats import CHANNELS
from beton_tools.base.jit import njit
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
# bit k: op k is of that kind
POINTS, TABLES, AFFINES = (
    sum(1 << k for k, op in enumerate(OPS) if op.kind == kind) for kind in (POINT, TABLE, AFFINE)
)

BYTE_VALUES = 256
ENTRIES = CHANNELS * BYTE_VALUES  # of the tables of an image's channels
STATISTICS = ENTRIES + 2 * CHANNELS  # int32 values that `table_entry` reads
SOLARIZE_ADD_BELOW = 128  # timm's threshold
BLUR_PASSES = 3  # box passes per direction in Pillow's GaussianBlur
BOX_ONE = 1 << 24  # fixed-point 1 of Pillow's box blur
DECIMALS = 1e15  # Pillow rounds the sine and cosine of a rotation to 15 decimals


@njit()
def clip_byte(value):
    """float32 -> uint8: clipped, then truncated as C does."""
    return np.uint8(np.int32(min(max(value, np.float32(0.0)), np.float32(255.0))))


@njit()
def blend(a, b, factor):
    """Pillow's Image.blend of two bytes: a at factor 0, b at 1, beyond outside; float32, truncated."""
    return clip_byte(np.float32(a) + factor * (np.float32(b) - np.float32(a)))


@njit()
def luma(red, green, blue):
    """Pillow's conversion to "L": ITU-R 601-2 in 16-bit fixed point."""
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
    """New value of a byte by the ops that treat every byte alike. mean: for Contrast the image's `mean_luma`, else 0."""
    if op == INVERT:
        return np.uint8(255 - value)
    if op == POSTERIZE:  # 0 bits: black, as Pillow before 13 made it
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
    """Entry i = 256 * channel + value of the ops with a table for each channel.

    statistics: (STATISTICS,) int32 of the image. Equalize: pixels of the channel with lesser values, for every entry, and
    from ENTRIES the step of each channel. AutoContrast: from ENTRIES the least value of each channel, then the greatest.
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
    """Equalize's statistics from the histogram of a channel, in place. step: pixels per output level; 0: no change."""
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
    """Pillow's SMOOTH filter, weights 1 round a 5, over 13, rounded; `box_sum` is of all nine pixels.

    In integers: the float32 error of Pillow's sum never reaches the nearest tie, 1/26 away.
    """
    return (2 * (np.int32(box_sum) + 4 * np.int32(centre)) + 13) // 26


@njit()
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


@njit()
def box_byte(inner_sum, edge_sum, inner, edge):
    """One byte of a box blur: the sum within the radius and of the two pixels just beyond (uint32)."""
    return np.uint8((inner_sum * inner + edge_sum * edge + np.uint32(BOX_ONE >> 1)) >> np.uint32(24))


# -- geometric ops -----------------------------------------------------------------------------------------------------


@njit()
def is_affine(op):
    return AFFINES >> op & 1 == 1


@njit()
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


@njit()
def _read_byte(pixels, i):
    """A byte as float64. The unsigned index spares Numba's test for a negative one."""
    return np.float64(pixels[np.uintp(i)])


@njit()
def truncate(value):
    """float64 -> uint8: clipped, then truncated as C does."""
    return np.uint8(np.int32(min(max(value, 0.0), 255.0)))


@njit()
def cubic(a, b, c, d, t):
    """Cubic through four neighbours at t in [0, 1) between b and c (a = -1, as Pillow's transform)."""
    return b + t * ((c - a) + t * ((2.0 * (a - b) + c - d) + t * (b - a - c + d)))


@njit()
def linear(a, b, t):
    """Between two neighbours at t in [0, 1)."""
    return a + (b - a) * t


# Both as weights of four neighbours, of which the outer two are nothing to `linear`: row k is for t to the power of k.
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
    """The image (flat uint8) at (x, y) inside it. Pixels centre on halves; edges repeat.

    A coordinate on a pixel centre (all of y in ShearX and TranslateX) needs one row or column of the 4 x 4.
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
    """The same as `sample_bicubic`, over 2 x 2 pixels."""
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
    """(x, y) in the source of the centre of output row i, column j."""
    a, b, c, d, e, f = matrix
    x, y = j + 0.5, i + 0.5
    return a * x + b * y + c, d * x + e * y + f


@njit()
def inside(x, y, height, width):
    """True if (x, y) shows the image and not the fill colour."""
    return 0.0 <= x < width and 0.0 <= y < height
