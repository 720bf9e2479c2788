"""The ops on whole images on the CPU: loops over the scalar functions in ops.py.

Images are flat uint8 arrays with height*width*3 bytes. `source` and `target` are different arrays, and the byte after
`source` must be readable, because pixels are read four bytes at a time. Nothing allocates: `run_op` works in scratch
memory with `op_scratch_size` bytes.
"""

import numpy as np

from beton_tools.base.jit import njit
from fastft.augment import ops
from fastft.augment.ops_image_affine import affine_scratch_size, run_affine
from fastft.augment.simd import copy, take

TILE = 16  # pixels. A 16 x 16 tile touches 16 cache lines on either side
ONE, TWO = np.uintp(1), np.uintp(2)  # unsigned indices need no test for Python's negative ones, and become vector code


@njit()
def _row(image, y, pitch):
    return image[y * pitch : (y + 1) * pitch]


@njit()
def _mean_luma(source):
    total = 0
    for i in range(np.uintp(0), np.uintp(source.size), np.uintp(3)):
        total += ops.luma(source[i], source[i + ONE], source[i + TWO])
    return ops.mean_luma(total, source.size // 3)


@njit()
def _point(op, argument, source, target):
    """Run an op that vector code computes faster than a table can be read."""
    mean = _mean_luma(source) if op == ops.CONTRAST else np.int32(0)
    for i in range(source.size):
        target[i] = ops.point_entry(op, source[i], argument, mean)


@njit()
def _measure(op, source, statistics):
    """Measure the image values that `ops.table_entry` needs."""
    if op == ops.EQUALIZE:
        statistics[:] = 0
        for i in range(np.uintp(0), np.uintp(source.size), np.uintp(3)):
            for c in range(np.uintp(3)):
                statistics[c * np.uintp(ops.BYTE_VALUES) + np.uintp(source[i + c])] += 1
        for c in range(3):
            ops.accumulate(statistics, c)
    elif op == ops.AUTO_CONTRAST:
        low_r = low_g = low_b = np.uint8(255)
        high_r = high_g = high_b = np.uint8(0)
        for i in range(np.uintp(0), np.uintp(source.size), np.uintp(3)):
            r, g, b = source[i], source[i + ONE], source[i + TWO]
            low_r, low_g, low_b = min(low_r, r), min(low_g, g), min(low_b, b)
            high_r, high_g, high_b = max(high_r, r), max(high_g, g), max(high_b, b)
        for k, value in enumerate((low_r, low_g, low_b, high_r, high_g, high_b)):
            statistics[ops.ENTRIES + k] = value


@njit()
def look_up(source, tables, target):
    """Set target[i] to the entry for source[i] in its channel's part of `tables` (3 x 256, flat, any dtype)."""
    red, green, blue = (
        _row(tables, 0, ops.BYTE_VALUES),
        _row(tables, 1, ops.BYTE_VALUES),
        _row(tables, 2, ops.BYTE_VALUES),
    )
    for i in range(np.uintp(0), np.uintp(source.size), np.uintp(3)):
        target[i], target[i + ONE], target[i + TWO] = (red[source[i]], green[source[i + ONE]], blue[source[i + TWO]])


@njit()
def _grey(source, target):
    """Write each pixel's luma to its three channels."""
    for i in range(np.uintp(0), np.uintp(source.size), np.uintp(3)):
        value = np.uint8(ops.luma(source[i], source[i + ONE], source[i + TWO]))
        target[i], target[i + ONE], target[i + TWO] = value, value, value


@njit()
def _saturate(source, pitch, factor, grey, target):
    """Blend each pixel's luma with the pixel, row by row."""
    for begin in range(0, source.size, pitch):
        row, out = source[begin : begin + pitch], target[begin : begin + pitch]
        _grey(row, grey)
        for i in range(np.uintp(pitch)):
            out[i] = ops.blend(grey[i], row[i], factor)


@njit()
def _sharpen(source, height, width, factor, target):
    """Blend the smoothed image, whose border is copied, with the image."""
    pitch = 3 * width
    copy(source, target)
    for y in range(1, height - 1):
        above, row, below = _row(source, y - 1, pitch), _row(source, y, pitch), _row(source, y + 1, pitch)
        out = _row(target, y, pitch)
        for i in range(pitch - 6):
            left = np.int32(above[i]) + np.int32(row[i]) + np.int32(below[i])
            centre = np.int32(above[i + 3]) + np.int32(row[i + 3]) + np.int32(below[i + 3])
            right = np.int32(above[i + 6]) + np.int32(row[i + 6]) + np.int32(below[i + 6])
            out[i + 3] = ops.blend(ops.smooth(left + centre + right, row[i + 3]), row[i + 3], factor)


@njit()
def _box_combine(first, last, sums, inner, edge, out):
    for i in range(out.size):
        out[i] = ops.box_byte(sums[i], np.uint32(first[i]) + np.uint32(last[i]), inner, edge)


@njit()
def _box_vertical(source, height, width, weights, sums, target):
    reach, inner, edge = weights
    pitch, bottom = 3 * width, height - 1
    for y in range(height):
        sums[:] = 0
        for k in range(y - reach, y + reach + 1):
            row = _row(source, min(max(k, 0), bottom), pitch)
            for i in range(pitch):
                sums[i] += np.uint32(row[i])
        first = _row(source, max(y - reach - 1, 0), pitch)
        last = _row(source, min(y + reach + 1, bottom), pitch)
        _box_combine(first, last, sums, inner, edge, _row(target, y, pitch))


@njit()
def _transpose(source, height, width, target):
    """Turn rows into columns, pixel by pixel, in tiles that stay in cache."""
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            for y in range(top, min(top + TILE, height)):
                for x in range(left, min(left + TILE, width)):
                    i, to = np.uintp(3 * (y * width + x)), np.uintp(3 * (x * height + y))
                    target[to], target[to + ONE], target[to + TWO] = (source[i], source[i + ONE], source[i + TWO])


@njit()
def _blur(source, height, width, sigma, other, sums, target):
    """Run three box passes along rows, then three along columns.

    Rows are done on the transposed image, as vector code.
    """
    if sigma == 0.0:
        copy(source, target)
        return
    weights = ops.box_weights(sigma)
    column, row = sums[: 3 * height], sums[: 3 * width]
    _transpose(source, height, width, target)
    _box_vertical(target, width, height, weights, column, other)
    _box_vertical(other, width, height, weights, column, target)
    _box_vertical(target, width, height, weights, column, other)
    _transpose(other, width, height, target)
    _box_vertical(target, height, width, weights, row, other)
    _box_vertical(other, height, width, weights, row, target)
    _box_vertical(target, height, width, weights, row, other)
    copy(other, target)


@njit()
def op_scratch_size(height: int, width: int) -> int:
    """Return the scratch bytes that any op needs for an image with this size."""
    tables = ops.ENTRIES + 4 * ops.STATISTICS + 2 * 64
    blur = 3 * height * width + 12 * max(height, width) + 2 * 64
    return max(tables, blur, affine_scratch_size(height, width))


@njit(inline="always")  # optimised once, together with its only caller
def run_op(op, argument, source, target, height, width, fill, bicubic, scratch):
    """Run an op on source, and write the result to target.

    Args:
        argument: as in a plan.
        fill: (3,) uint8, for geometric ops.
        bicubic: for geometric ops.
    """
    if ops.is_point(op):
        _point(op, argument, source, target)
    elif ops.is_table(op):
        tables, at = take(scratch, 0, ops.ENTRIES)
        part, at = take(scratch, at, 4 * ops.STATISTICS)
        statistics = part.view(np.int32)
        _measure(op, source, statistics)
        for i in range(ops.ENTRIES):
            tables[i] = ops.table_entry(op, i, argument, statistics)
        look_up(source, tables, target)
    elif ops.is_affine(op):
        run_affine(op, argument, source, target, height, width, fill, bicubic, scratch)
    elif op == ops.COLOR:
        grey, _ = take(scratch, 0, 3 * width)
        _saturate(source, 3 * width, np.float32(argument), grey, target)
    elif op == ops.GRAYSCALE:
        _grey(source, target)
    elif op == ops.SHARPNESS:
        _sharpen(source, height, width, np.float32(argument), target)
    elif op == ops.GAUSSIAN_BLUR:
        other, at = take(scratch, 0, 3 * height * width)
        sums, at = take(scratch, at, 12 * max(height, width))
        _blur(source, height, width, argument, other, sums.view(np.uint32), target)
    else:
        copy(source, target)
