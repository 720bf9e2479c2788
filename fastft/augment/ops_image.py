"""The ops on whole images, on the CPU: loops over the scalar functions of ops.py and ops_affine.py.

Images are flat uint8 arrays of height*width*3; `source` and `target` are different ones. Nothing allocates:
`run_op` works in scratch of `op_scratch_size` bytes.
"""

import numpy as np
from numba import njit

from beton_tools.errors import UserError
from fastft.augment.levels import level_argument
from fastft.augment.ops import (
    AUTO_CONTRAST,
    BRIGHTNESS,
    CONTRAST,
    EQUALIZE,
    INVERT,
    POSTERIZE,
    SOLARIZE_ADD,
    autocontrast_entry,
    blend,
    box_byte,
    box_weights,
    contrast_entry,
    contrast_mean,
    equalize_entry,
    equalize_step,
    luma,
    point_entry,
    smooth,
)
from fastft.augment.ops_affine import (
    ROTATE,
    SHEAR_X,
    TRANSLATE_Y,
    affine_matrix,
    affine_pixel,
)
from fastft.augment.plan import OP_ID, OPS
from fastft.augment.resize import take

COLOR, SHARPNESS = OP_ID["Color"], OP_ID["Sharpness"]
GRAYSCALE, GAUSSIAN_BLUR = OP_ID["Grayscale"], OP_ID["GaussianBlur"]
LEVELS = 256
CLIP_FILL = (123, 117, 104)  # 255 x CLIP's mean, rounded: timm's fill for what geometric ops uncover


@njit(cache=True)
def _count(source, histogram):  # type: ignore[no-untyped-def]
    """Histogram (3 x 256 int64, flat) of each channel."""
    histogram[:] = 0
    for i in range(0, source.size, 3):
        for c in range(3):
            histogram[c * LEVELS + source[i + c]] += 1


@njit(cache=True)
def _channel_range(source, c):  # type: ignore[no-untyped-def]
    low, high = np.uint8(255), np.uint8(0)
    for i in range(c, source.size, 3):
        low, high = min(low, source[i]), max(high, source[i])
    return np.int64(low), np.int64(high)


@njit(cache=True)
def _equalize_channel(histogram, table):  # type: ignore[no-untyped-def]
    last = 0
    for v in range(LEVELS):
        last = histogram[v] if histogram[v] > 0 else last
    step, below = equalize_step(histogram.sum(), last), 0
    for v in range(LEVELS):
        table[v] = equalize_entry(v, below, step)
        below += histogram[v]


@njit(cache=True)
def _luma_sum(source):  # type: ignore[no-untyped-def]
    total = 0
    for i in range(0, source.size, 3):
        total += luma(source[i], source[i + 1], source[i + 2])
    return total


@njit(cache=True)
def _fill_table(op, argument, source, table, histogram):  # type: ignore[no-untyped-def]
    """The 3 x 256 table (flat) of a table op for this image."""
    if op == EQUALIZE:
        _count(source, histogram)
        for c in range(0, 3 * LEVELS, LEVELS):
            _equalize_channel(histogram[c : c + LEVELS], table[c : c + LEVELS])
        return
    if op == AUTO_CONTRAST:
        for c in range(3):
            low, high = _channel_range(source, c)
            for v in range(LEVELS):
                table[c * LEVELS + v] = autocontrast_entry(v, low, high)
        return
    mean = contrast_mean(_luma_sum(source), source.size // 3) if op == CONTRAST else 0
    for v in range(LEVELS):
        table[v] = contrast_entry(v, mean, argument) if op == CONTRAST else point_entry(op, v, argument)
        table[LEVELS + v] = table[2 * LEVELS + v] = table[v]


@njit(cache=True)
def _look_up(source, table, target):  # type: ignore[no-untyped-def]
    for i in range(0, source.size, 3):
        for c in range(3):
            target[i + c] = table[c * LEVELS + source[i + c]]


@njit(cache=True)
def _saturate(source, factor, target):  # type: ignore[no-untyped-def]
    """Color and, at factor 0, Grayscale: blend of the pixel's luma and the pixel."""
    for i in range(0, source.size, 3):
        grey = luma(source[i], source[i + 1], source[i + 2])
        for c in range(3):
            target[i + c] = blend(grey, source[i + c], factor)


@njit(cache=True)
def _sharpen(source, height, width, factor, target):  # type: ignore[no-untyped-def]
    """Blend of the smoothed image, its border copied, and the image."""
    pitch = 3 * width
    target[:] = source
    for y in range(1, height - 1):
        above, row, below = source[(y - 1) * pitch :], source[y * pitch :], source[(y + 1) * pitch :]
        out = target[y * pitch :]
        for i in range(3, pitch - 3):
            total = np.int32(0)
            for k in range(-3, 4, 3):
                total += np.int32(above[i + k]) + np.int32(row[i + k]) + np.int32(below[i + k])
            out[i] = blend(smooth(total, row[i]), row[i], factor)


@njit(cache=True)
def _transform(source, height, width, matrix, fill, bicubic, target):  # type: ignore[no-untyped-def]
    for i in range(height):
        for j in range(width):
            affine_pixel(source, height, width, matrix, i, j, fill, bicubic, target, 3 * (i * width + j))


@njit(cache=True)
def _box_clamped(row, i, width, weights):  # type: ignore[no-untyped-def]
    """Byte i of a row's horizontal box pass, edges repeated."""
    reach, inner, edge = weights
    x, c, total = i // 3, i % 3, np.uint32(0)
    for k in range(x - reach, x + reach + 1):
        total += np.uint32(row[3 * min(max(k, 0), width - 1) + c])
    before, after = row[3 * max(x - reach - 1, 0) + c], row[3 * min(x + reach + 1, width - 1) + c]
    return box_byte(total, np.uint32(before) + np.uint32(after), inner, edge)


@njit(cache=True)
def _box_horizontal(source, height, width, weights, sums, target):  # type: ignore[no-untyped-def]
    reach, inner, edge = weights
    pitch, reach_bytes, margin = 3 * width, 3 * reach, min(3 * (reach + 1), 3 * width)
    for y in range(height):
        row, out = source[y * pitch : (y + 1) * pitch], target[y * pitch : (y + 1) * pitch]
        inside = max(pitch - margin, margin)
        sums[:pitch] = 0
        for k in range(-reach_bytes, reach_bytes + 1, 3):
            for i in range(margin, inside):
                sums[i] += np.uint32(row[i + k])
        for i in range(margin, inside):
            ends = np.uint32(row[i - reach_bytes - 3]) + np.uint32(row[i + reach_bytes + 3])
            out[i] = box_byte(sums[i], ends, inner, edge)
        for i in range(margin):
            out[i] = _box_clamped(row, i, width, weights)
        for i in range(inside, pitch):
            out[i] = _box_clamped(row, i, width, weights)


@njit(cache=True)
def _box_vertical(source, height, width, weights, sums, target):  # type: ignore[no-untyped-def]
    reach, inner, edge = weights
    pitch, bottom = 3 * width, height - 1
    for y in range(height):
        sums[:pitch] = 0
        for k in range(y - reach, y + reach + 1):
            row = source[min(max(k, 0), bottom) * pitch :]
            for i in range(pitch):
                sums[i] += np.uint32(row[i])
        before, after = source[max(y - reach - 1, 0) * pitch :], source[min(y + reach + 1, bottom) * pitch :]
        out = target[y * pitch :]
        for i in range(pitch):
            out[i] = box_byte(sums[i], np.uint32(before[i]) + np.uint32(after[i]), inner, edge)


@njit(cache=True)
def _blur(source, height, width, sigma, other, sums, target):  # type: ignore[no-untyped-def]
    """Three box passes along rows, then three along columns; the last of them ends in `target`."""
    if sigma == 0.0:
        target[:] = source
        return
    weights = box_weights(sigma)
    _box_horizontal(source, height, width, weights, sums, other)
    _box_horizontal(other, height, width, weights, sums, target)
    _box_horizontal(target, height, width, weights, sums, other)
    _box_vertical(other, height, width, weights, sums, target)
    _box_vertical(target, height, width, weights, sums, other)
    _box_vertical(other, height, width, weights, sums, target)


@njit(cache=True)
def op_scratch_size(height: int, width: int) -> int:
    """Bytes of scratch for any op on an image of that size: histogram and table, or an image and a row."""
    return 3 * LEVELS * 9 + 3 * height * width + 12 * width + 4 * 64


@njit(cache=True)
def is_table(op):  # type: ignore[no-untyped-def]
    return AUTO_CONTRAST <= op <= INVERT or POSTERIZE <= op <= SOLARIZE_ADD or op in (CONTRAST, BRIGHTNESS)


@njit(cache=True)
def is_affine(op):  # type: ignore[no-untyped-def]
    return op == ROTATE or SHEAR_X <= op <= TRANSLATE_Y


@njit(cache=True)
def run_op(op, argument, source, target, height, width, fill, bicubic, scratch):  # type: ignore[no-untyped-def]
    """target = op of source. `argument` as in a plan; `fill` (3,) uint8, `bicubic`: for geometric ops."""
    if is_table(op):
        table, at = take(scratch, 0, 3 * LEVELS)
        histogram, at = take(scratch, at, 3 * LEVELS * 8)
        _fill_table(op, argument, source, table, histogram.view(np.int64))
        _look_up(source, table, target)
    elif is_affine(op):
        matrix = affine_matrix(op, argument, height, width)
        _transform(source, height, width, matrix, fill, bicubic, target)
    elif op in (COLOR, GRAYSCALE):
        _saturate(source, np.float32(argument if op == COLOR else 0.0), target)
    elif op == SHARPNESS:
        _sharpen(source, height, width, np.float32(argument), target)
    elif op == GAUSSIAN_BLUR:
        other, at = take(scratch, 0, 3 * height * width)
        sums, at = take(scratch, at, 12 * width)
        _blur(source, height, width, argument, other, sums.view(np.uint32), target)
    else:
        target[:] = source


def apply_argument(
    name: str,
    image_HWC: np.ndarray,
    argument: float = 0.0,
    *,
    fill: tuple[int, int, int] = CLIP_FILL,
    bicubic: bool = True,
) -> np.ndarray:
    """The op of that name in plan.OPS, by its resolved argument (its meaning: plan.OPS). uint8 -> uint8."""
    if name not in OP_ID:
        raise UserError(f"unknown op {name!r}: use one of {', '.join(OP_ID)}")
    if image_HWC.dtype != np.uint8 or image_HWC.shape[2:] != (3,) or image_HWC.size == 0:
        raise UserError("ops take an (H, W, 3) uint8 image; convert it to RGB bytes first")
    height, width = image_HWC.shape[:2]
    source = np.ascontiguousarray(image_HWC).reshape(-1)
    target, scratch = np.empty_like(source), np.empty(op_scratch_size(height, width), np.uint8)
    colour = np.array(fill, np.uint8)
    run_op(OP_ID[name], float(argument), source, target, height, width, colour, bicubic, scratch)
    return target.reshape(image_HWC.shape)


def apply_op(
    name: str,
    image_HWC: np.ndarray,
    magnitude: float = 0.0,
    sign: int = 1,
    *,
    fill: tuple[int, int, int] = CLIP_FILL,
    bicubic: bool = True,
) -> np.ndarray:
    """timm's op `name` (such as "ColorIncreasing") at a magnitude of 0..10. (H, W, 3) uint8 -> the same.

    `sign` is what timm draws for ops that go both ways. Raises UserError for an unknown name or image.
    """
    op, argument = level_argument(name, magnitude, sign, height=image_HWC.shape[0], width=image_HWC.shape[1])
    return apply_argument(OPS[op], image_HWC, argument, fill=fill, bicubic=bicubic)
