"""Rotate, shear and translate whole images on the CPU.

The functions in ops.py define every pixel. Two loops give the same bytes for many pixels at a time:

- ShearX and TranslateX move pixels along rows only, ShearY and TranslateY along columns only, so a byte depends on
  four bytes in one row or column. The loop does the same float64 operations for neighbouring bytes, which the
  compiler turns into vector code.
- Rotate computes a pixel in float32 first. The float32 error is known to be less than UNSURE, so a value that is
  farther than this from every whole number truncates to the same byte as the float64 value. The other pixels, one in
  150 in a photograph, are computed in float64.
"""

import math
from typing import NamedTuple

import numpy as np

from beton_tools.base.jit import njit
from fastft.augment import ops, simd

MARGIN = 2  # pixels by which the 4 x 4 neighbours of a point inside the image can reach beyond it


class Image(NamedTuple):
    """An image, its target and the transform between them."""

    source: np.ndarray  # flat uint8
    target: np.ndarray  # the same size
    height: int
    width: int
    matrix: tuple[float, float, float, float, float, float]  # of affine_source
    fill: np.ndarray  # (3 * width,) uint8: a row in the fill colour
    bicubic: bool


class Bytes(NamedTuple):
    """float64 values for every byte in a row, for shear and translate."""

    column: np.ndarray  # the column of its pixel
    place: np.ndarray  # its coordinate in the source, where pixel centres are whole numbers
    offset: np.ndarray  # rows from the output pixel down to the source pixel at or above its place


class Pixels(NamedTuple):
    """Values for a row of pixels, for rotate."""

    window: np.ndarray  # int32: where the 4 x 4 neighbours begin in the padded image
    tx: np.ndarray  # float32: place between the inner four, in [0, 1)
    ty: np.ndarray
    value: np.ndarray  # float32: three channels, not yet clipped, and one more for vector code
    unsure: np.ndarray  # uint8, 1 for a channel that float32 does not determine, padded to a multiple of 8


@njit()
def _image_bytes(height, width):
    """Return the bytes in a padded image, or in one with aligned columns."""
    return (height + 2 * MARGIN) * (3 * (width + 2 * MARGIN) + simd.LANES) + simd.LANES


@njit()
def affine_scratch_size(height: int, width: int) -> int:
    """Return the scratch bytes that `run_affine` needs."""
    return _image_bytes(height, width) + (3 + 3 * 24) * width + 8 * simd.CACHE_LINE


@njit()
def run_affine(op, argument, source, target, height, width, fill, bicubic, scratch):
    """Set target to the rotated, sheared or translated source. For the arguments, see `ops_image.run_op`."""
    fill_row, at = simd.take(scratch, 0, 3 * width)
    for k in range(3 * width):
        fill_row[k] = fill[k % 3]
    moved, at = simd.take(scratch, at, _image_bytes(height, width))
    matrix = ops.affine_matrix(op, argument, height, width)
    image = Image(source, target, height, width, matrix, fill_row, bicubic)
    if op == ops.ROTATE:
        _rotate(image, moved, _allocate_pixels(scratch, at, width))
    elif op in (ops.SHEAR_X, ops.TRANSLATE_X):
        _move_along_rows(image, moved, _allocate_bytes(scratch, at, width))
    else:
        _move_along_columns(image, moved, _allocate_bytes(scratch, at, width))


# -- rows of the output ------------------------------------------------------------------------------------------------


@njit()
def _begin_row(image, i):
    """Fill the part of output row i that does not show the source. Returns (begin, end) of the columns that do."""
    begin, end = inside_span(image.matrix, i, image.height, image.width)
    row, stop = 3 * image.width * i, 3 * image.width * (i + 1)
    simd.copy(image.fill[: 3 * begin], image.target[row : row + 3 * begin])
    simd.copy(image.fill[3 * end :], image.target[row + 3 * end : stop])
    return begin, end


@njit()
def inside_span(matrix, i, height, width):
    """Return (begin, end): the columns in output row i where `inside` holds.

    Coordinates, even rounded ones, are monotone in the column, so these columns are adjacent. A solution in real
    numbers is widened by a column on either side, and then narrowed by the test itself.
    """
    x, y = ops.affine_source(matrix, i, -0.5)
    low_x, high_x = _limits(matrix[0], x, width, width)
    low_y, high_y = _limits(matrix[3], y, height, width)
    begin = min(max(np.int64(max(low_x, low_y)) - 1, 0), width)
    end = min(np.int64(min(high_x, high_y)) + 2, width)
    while begin < end and not _is_inside(matrix, i, begin, height, width):
        begin += 1
    while begin < end and not _is_inside(matrix, i, end - 1, height, width):
        end -= 1
    return begin, max(begin, end)


@njit()
def _limits(slope, start, size, count):
    """Return (low, high) for the p in 0..count with start + slope * p in [0, size)."""
    if abs(slope) < 1e-9:  # all columns or none. Near the limits, rounding decides
        return (0.0, float(count)) if -1.0 < start < size + 1.0 else (float(count), 0.0)
    one, other = -start / slope, (size - start) / slope
    low, high = min(one, other), max(one, other)
    return min(max(low, 0.0), float(count)), min(max(high, 0.0), float(count))


@njit()
def _is_inside(matrix, i, j, height, width):
    x, y = ops.affine_source(matrix, i, j)
    return ops.inside(x, y, height, width)


@njit()
def _sample(image, i, begin, end):
    """Sample columns begin..end-1 in output row i, one byte at a time."""
    source, height, width = image.source, image.height, image.width
    for j in range(begin, end):
        x, y = ops.affine_source(image.matrix, i, j)
        for c in range(3):
            if image.bicubic:
                value = ops.sample_bicubic(source, height, width, x, y, c)
            else:
                value = ops.sample_bilinear(source, height, width, x, y, c)
            image.target[3 * (i * width + j) + c] = ops.truncate(value)


@njit()
def _copy_over(source, start, size, target, to):
    """Set target[to : to + size] = source[start : start + size]. Up to 15 bytes behind them may be overwritten."""
    whole = min(size, source.size - simd.LANES + 1 - start)
    k = 0
    while k < whole:
        simd.copy_bytes(source, start + k, target, to + k)
        k += simd.LANES
    while k < size:
        target[to + k] = source[start + k]
        k += 1


@njit()
def _pad_row(image, i, target, to):
    """Set target[to:] to source row i with its edge pixels repeated MARGIN times. Overwrites as `_copy_over`."""
    begin, end = 3 * image.width * i, 3 * image.width * (i + 1)
    inner, outer = to + 3 * MARGIN, to + 3 * (MARGIN + image.width)
    _copy_over(image.source, begin, 3 * image.width, target, inner)
    for k in range(MARGIN):
        for c in range(3):
            target[to + 3 * k + c] = image.source[begin + c]
            target[outer + 3 * k + c] = image.source[end - 3 + c]


# -- shear and translate: one fractional coordinate --------------------------------------------------------------------


@njit()
def _allocate_bytes(scratch, at, width):
    column, at = simd.take(scratch, at, 24 * width)
    place, at = simd.take(scratch, at, 24 * width)
    offset, at = simd.take(scratch, at, 24 * width)
    row = Bytes(column.view(np.float64), place.view(np.float64), offset.view(np.float64))
    for k in range(3 * width):
        row.column[k] = k // 3
    return row


@njit()
def _move_along_rows(image, line, row):
    for i in range(image.height):
        begin, end = _begin_row(image, i)
        if begin == end:
            continue
        _pad_row(image, i, line, np.int64(0))
        low, high = 3 * begin, 3 * end
        for k in range(np.uintp(low), np.uintp(high)):
            row.place[k] = ops.affine_source(image.matrix, i, row.column[k])[0] - 0.5
        shift = math.floor(row.place[low]) - begin
        first, last = 3 * (MARGIN - 1 + shift) + low, 3 * (MARGIN - 1 + shift) + high
        taps = (line[first:last], line[first + 3 : last + 3], line[first + 6 : last + 6], line[first + 9 : last + 9])
        if not _interpolate(image, i, low, high, taps, row.place, row.column, float(shift)):
            _sample(image, i, begin, end)


@njit()
def _move_along_columns(image, aligned, row):
    pitch = 3 * image.width + simd.LANES
    _align_columns(image, row.offset, row.place.view(np.int64), aligned, pitch)
    for i in range(image.height):
        begin, end = _begin_row(image, i)
        if begin == end:
            continue
        low, high = 3 * begin, 3 * end
        for k in range(np.uintp(low), np.uintp(high)):
            row.place[k] = ops.affine_source(image.matrix, i, row.column[k])[1] - 0.5
        first, last = i * pitch + low, i * pitch + high
        taps = (
            aligned[first:last],
            aligned[first + pitch : last + pitch],
            aligned[first + 2 * pitch : last + 2 * pitch],
            aligned[first + 3 * pitch : last + 3 * pitch],
        )
        if not _interpolate(image, i, low, high, taps, row.place, row.offset, float(i)):
            _sample(image, i, begin, end)


@njit()
def _align_columns(image, offset, ends, aligned, pitch):
    """Move every column so that an output pixel in row i has its source pixel in row i + 1 of `aligned`.

    Output rows are -1 to height + 1, and the source's edges repeat. Neighbouring columns that move equally are copied
    as one: their ends are written to `ends` (int64).
    """
    runs = 0
    for j in range(image.width):
        rows_down = math.floor(ops.affine_source(image.matrix, 0, j)[1] - 0.5)
        offset[3 * j], offset[3 * j + 1], offset[3 * j + 2] = rows_down, rows_down, rows_down
        runs += j == 0 or offset[3 * j - 3] != rows_down
        ends[runs - 1] = j + 1
    for i in range(-1, image.height + 2):
        begin, to = 0, (i + 1) * pitch
        for r in range(runs):
            line = min(max(i + np.int64(offset[3 * begin]), 0), image.height - 1)
            start, size = 3 * (line * image.width + begin), 3 * (ends[r] - begin)
            if start + size + simd.LANES <= image.source.size:
                for k in range(0, size, simd.LANES):
                    simd.copy_bytes(image.source, start + k, aligned, to + 3 * begin + k)
            else:
                _copy_over(image.source, start, size, aligned, to + 3 * begin)
            begin = ends[r]


@njit()
def _interpolate(image, i, low, high, taps, place, pixel, shift):
    """Interpolate bytes low..high-1 in output row i at their places.

    Byte k of the taps belongs to the pixels p - 1 to p + 2.

    p is pixel[k] + shift. If p is not the pixel at or before every place, the bytes are wrong and the function
    returns False. This happens because a coordinate may round to a whole number and so become the next pixel's.
    """
    a, b, c, d = taps
    out, place, pixel = image.target[3 * image.width * i :][low:high], place[low:high], pixel[low:high]
    elsewhere = False
    for k in range(np.uintp(out.size)):
        p = pixel[k] + shift
        elsewhere |= math.floor(place[k]) != p
        t, near, far = place[k] - p, np.float64(b[k]), np.float64(c[k])
        if image.bicubic:
            out[k] = ops.truncate(ops.cubic(np.float64(a[k]), near, far, np.float64(d[k]), t))
        else:
            out[k] = ops.truncate(ops.linear(near, far, t))
    return not elsewhere


# -- rotate: two fractional coordinates --------------------------------------------------------------------------------

# A pixel's greatest error in float32, 8e-4, is rounded up to a power of two. A weight is wrong by 2e-7 after Horner's
# rule, and the absolute weights for four neighbours sum up to 1.5 at most. Along columns, 255 * 4 * 2e-7 and 8e-5
# from rounding are together 2.9e-4. Along rows, add 1.5 times that, 319 * 4 * 2e-7 for the weights and 1.1e-4 from
# rounding.
UNSURE = np.float32(2.0**-10)


@njit()
def _allocate_pixels(scratch, at, width):
    window, at = simd.take(scratch, at, 4 * width)
    tx, at = simd.take(scratch, at, 4 * width)
    ty, at = simd.take(scratch, at, 4 * width)
    value, at = simd.take(scratch, at, 4 * (3 * width + 1))
    unsure, at = simd.take(scratch, at, simd.round_up(3 * width, 8) + 8)
    return Pixels(window.view(np.int32), tx.view(np.float32), ty.view(np.float32), value.view(np.float32), unsure)


@njit()
def _rotate(image, padded, row):
    pitch = 3 * (image.width + 2 * MARGIN)
    for y in range(image.height + 2 * MARGIN):
        _pad_row(image, min(max(y - MARGIN, 0), image.height - 1), padded, y * pitch)
    for i in range(image.height):
        begin, end = _begin_row(image, i)
        _locate(image.matrix, i, begin, end, float(pitch), row)
        if image.bicubic:
            for j in range(begin, end):
                columns = simd.columns_cubic(padded, np.int64(row.window[j]), pitch, row.ty[j])
                simd.rows_cubic(columns, row.tx[j], row.value, 3 * (j - begin))
        else:
            for j in range(begin, end):
                columns = simd.columns_linear(padded, np.int64(row.window[j]), pitch, row.ty[j])
                simd.rows_linear(columns, row.tx[j], row.value, 3 * (j - begin))
        out = image.target[3 * (i * image.width + begin) : 3 * (i * image.width + end)]
        _truncate_row(row.value, out, row.unsure)
        _repair(image, i, begin, end, padded, pitch, row)


@njit()
def _locate(matrix, i, begin, end, pitch, row):
    """Find each column's offset to its 4 x 4 neighbours in the padded image, and its place between the inner four."""
    window, tx, ty = row.window, row.tx, row.ty
    for j in range(np.uintp(begin), np.uintp(end)):
        x, y = ops.affine_source(matrix, i, np.float64(j))
        x, y = x - 0.5, y - 0.5
        column, line = np.floor(x), np.floor(y)
        tx[j], ty[j] = x - column, y - line
        window[j] = (line + (MARGIN - 1)) * pitch + 3 * (column + (MARGIN - 1))


@njit()
def _truncate_row(value, out, unsure):
    """Write clipped and truncated values to out.

    unsure[k] is 1 where value[k] is within UNSURE of a value where a byte begins, 1 to 255.
    """
    for k in range(np.uintp(out.size)):
        clipped = min(max(value[k], np.float32(0.0)), np.float32(255.0))
        nearest = np.float32(np.int32(clipped + np.float32(0.5)))
        out[k] = np.uint8(np.int32(clipped))
        unsure[k] = (abs(value[k] - nearest) <= UNSURE) & (nearest > np.float32(0.0))
    for k in range(out.size, out.size + 8):
        unsure[k] = 0


@njit()
def _repair(image, i, begin, end, padded, pitch, row):
    """Compute a row's unsure pixels in float64. Where all neighbours are equal, the pixel equals them."""
    eights, done = row.unsure.view(np.uint64), -1
    for eight in range((3 * (end - begin) + 7) // 8):
        if eights[eight] == 0:
            continue
        for k in range(8 * eight, 8 * eight + 8):
            j = begin + k // 3
            if row.unsure[k] == 0 or j == done:
                continue
            done, at = j, np.int64(row.window[j])
            if simd.is_flat(padded, at, pitch):
                for c in range(3):
                    image.target[3 * (i * image.width + j) + c] = padded[at + c]
            else:
                _sample(image, i, j, j + 1)
