"""Rotate, shear and translate on whole images, on the CPU.

The functions of ops_affine.py define every pixel. Two loops give the same bytes for many pixels at a time:

- ShearX and TranslateX move pixels along rows only, ShearY and TranslateY along columns only, so a byte is one cubic of
  four bytes that lie in the same row or column. The loop does the same float64 operations for neighbouring bytes, which
  the compiler turns into vector code.
- Rotate computes a pixel in float32 first. The error of that is known to be less than UNSURE, so a value that is at
  least this far from every whole number truncates to the byte of the float64 value. The other pixels, about one in
  150, are computed in float64.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from fastft.augment.ops_affine import (
    ROTATE,
    SHEAR_X,
    TRANSLATE_X,
    affine_matrix,
    affine_source,
    cubic,
    inside,
    linear,
    sample_bicubic,
    sample_bilinear,
    truncate,
)
from fastft.augment.resize import round_up, take
from fastft.augment.simd import (
    LANES,
    columns_cubic,
    copy_bytes,
    is_flat,
    load_pixel,
    rows_cubic,
    store_pixel,
)

MARGIN = 2  # pixels by which the 4 x 4 neighbours of a point inside the image reach beyond it
SLACK = 64  # bytes behind a buffer that vector code may read or write
ONE, TWO = np.uintp(1), np.uintp(2)  # unsigned indices: no test for Python's negative ones, vector code


class Rows(NamedTuple):
    """Scratch for the bytes of one row."""

    column: np.ndarray  # (3 * width,) float64: column of each byte
    place: (
        np.ndarray
    )  # (3 * width,) float64: its coordinate in the source, where pixels centre on whole numbers
    offset: (
        np.ndarray
    )  # (3 * width,) float64: rows from the output pixel down to the source pixel at or above it


@njit(cache=True)
def affine_scratch_size(height: int, width: int) -> int:
    """Bytes of scratch for `run_affine`."""
    pixels = (height + 2 * MARGIN) * (3 * (width + 2 * MARGIN) + LANES) + SLACK
    return pixels + 3 * (24 * width + SLACK) + 4 * 64


@njit(cache=True)
def run_affine(op, argument, source, target, height, width, fill, bicubic, scratch):
    """target = rotation, shear or translation of source. The arguments: `ops_image.run_op`."""
    matrix = affine_matrix(op, argument, height, width)
    pixels, at = take(scratch, 0, (height + 2 * MARGIN) * (3 * (width + 2 * MARGIN) + LANES) + SLACK)
    if op == ROTATE and bicubic:
        _rotate(source, height, width, matrix, fill, pixels, scratch[at:], target)
    elif op == ROTATE:
        for i in range(height):
            begin, end = _begin_row(matrix, i, height, width, fill, target)
            _sample_span(source, height, width, matrix, i, begin, end, bicubic, target)
    else:
        column, at = take(scratch, at, 24 * width)
        place, at = take(scratch, at, 24 * width)
        offset, at = take(scratch, at, 24 * width)
        rows = Rows(column.view(np.float64), place.view(np.float64), offset.view(np.float64))
        for k in range(3 * width):
            rows.column[k] = k // 3
        if op in (SHEAR_X, TRANSLATE_X):
            _move_along_rows(source, height, width, matrix, fill, bicubic, pixels, rows, target)
        else:
            _move_along_columns(source, height, width, matrix, fill, bicubic, pixels, rows, target)


# -- rows of the output ------------------------------------------------------------------------------------------------


@njit(cache=True)
def _begin_row(matrix, i, height, width, fill, target):
    """Fills what output row i does not show of the source; returns (begin, end) of the columns that do."""
    begin, end = inside_span(matrix, i, height, width)
    _fill_pixels(target, i * width, i * width + begin, fill)
    _fill_pixels(target, i * width + end, (i + 1) * width, fill)
    return begin, end


@njit(cache=True)
def _fill_pixels(target, begin, end, fill):
    for p in range(np.uintp(3 * begin), np.uintp(3 * end), np.uintp(3)):
        target[p], target[p + ONE], target[p + TWO] = fill[0], fill[1], fill[2]


@njit(cache=True)
def inside_span(matrix, i, height, width):
    """(begin, end): the columns of output row i where `inside` holds.

    Coordinates are monotone in the column, rounded ones too, so these columns are adjacent. A solution in real numbers,
    widened by a column on either side, is narrowed by the test itself.
    """
    x, y = affine_source(matrix, i, -0.5)
    low_x, high_x = _limits(matrix[0], x, width, width)
    low_y, high_y = _limits(matrix[3], y, height, width)
    begin = min(max(np.int64(max(low_x, low_y)) - 1, 0), width)
    end = min(np.int64(min(high_x, high_y)) + 2, width)
    while begin < end and not _is_inside(matrix, i, begin, height, width):
        begin += 1
    while begin < end and not _is_inside(matrix, i, end - 1, height, width):
        end -= 1
    return begin, max(begin, end)


@njit(cache=True)
def _limits(slope, start, size, count):
    """(low, high) of the p in 0..count with start + slope * p in [0, size)."""
    if abs(slope) < 1e-9:  # the rounding error of `start` could be many columns: no limit
        return 0.0, float(count)
    one, other = -start / slope, (size - start) / slope
    low, high = min(one, other), max(one, other)
    return min(max(low, 0.0), float(count)), min(max(high, 0.0), float(count))


@njit(cache=True)
def _is_inside(matrix, i, j, height, width):
    x, y = affine_source(matrix, i, j)
    return inside(x, y, height, width)


@njit(cache=True)
def _sample_span(source, height, width, matrix, i, begin, end, bicubic, target):
    """Columns begin..end-1 of output row i, one pixel at a time."""
    for j in range(begin, end):
        x, y = affine_source(matrix, i, j)
        to = 3 * (i * width + j)
        if bicubic:
            store_pixel(target, to, sample_bicubic(load_pixel, source, height, width, x, y, 0))
        else:
            store_pixel(target, to, sample_bilinear(load_pixel, source, height, width, x, y, 0))


@njit(cache=True)
def _copy(source, start, size, target, to):
    """target[to : to + size] = source[start : start + size]; up to 15 bytes behind them are overwritten."""
    if start + size + LANES > source.size:
        for k in range(size):
            target[to + k] = source[start + k]
    else:
        for k in range(0, size, LANES):
            copy_bytes(source, start + k, target, to + k)


@njit(cache=True)
def _pad_row(source, row, width, target, to):
    """Row `row` of the source, MARGIN pixels of its edges on either side, to target[to:]. Overwrites as `_copy`."""
    begin, end = 3 * width * row, 3 * width * (row + 1)
    inner, outer = to + 3 * MARGIN, to + 3 * (MARGIN + width)
    _copy(source, begin, 3 * width, target, inner)
    for k in range(MARGIN):
        for c in range(3):
            target[to + 3 * k + c] = source[begin + c]
            target[outer + 3 * k + c] = source[end - 3 + c]


# -- shear and translate: one fractional coordinate --------------------------------------------------------------------


@njit(cache=True)
def _move_along_rows(source, height, width, matrix, fill, bicubic, line, rows, target):
    for i in range(height):
        begin, end = _begin_row(matrix, i, height, width, fill, target)
        if begin == end:
            continue
        _pad_row(source, i, width, line, 0)
        low, high = 3 * begin, 3 * end
        for k in range(np.uintp(low), np.uintp(high)):
            rows.place[k] = affine_source(matrix, i, rows.column[k])[0] - 0.5
        shift = math.floor(rows.place[low]) - begin
        at, size = 3 * (MARGIN + begin + shift), high - low
        taps = (
            line[at - 3 : at - 3 + size],
            line[at : at + size],
            line[at + 3 : at + 3 + size],
            line[at + 6 : at + 6 + size],
        )
        out = target[3 * i * width + low : 3 * i * width + high]
        if not _interpolate(taps, rows.place[low:high], rows.column[low:high], float(shift), bicubic, out):
            _sample_span(source, height, width, matrix, i, begin, end, bicubic, target)


@njit(cache=True)
def _move_along_columns(source, height, width, matrix, fill, bicubic, aligned, rows, target):
    pitch = 3 * width + LANES
    _align_columns(source, height, width, matrix, rows.offset, aligned, pitch)
    for i in range(height):
        begin, end = _begin_row(matrix, i, height, width, fill, target)
        if begin == end:
            continue
        low, high = 3 * begin, 3 * end
        for k in range(np.uintp(low), np.uintp(high)):
            rows.place[k] = affine_source(matrix, i, rows.column[k])[1] - 0.5
        first, last = i * pitch + low, i * pitch + high
        taps = (
            aligned[first:last],
            aligned[first + pitch : last + pitch],
            aligned[first + 2 * pitch : last + 2 * pitch],
            aligned[first + 3 * pitch : last + 3 * pitch],
        )
        out = target[3 * i * width + low : 3 * i * width + high]
        if not _interpolate(taps, rows.place[low:high], rows.offset[low:high], float(i), bicubic, out):
            _sample_span(source, height, width, matrix, i, begin, end, bicubic, target)


@njit(cache=True)
def _align_columns(source, height, width, matrix, offset, aligned, pitch):
    """Moves every column so that the source pixel of an output pixel in row i lies in row i + 1 of `aligned`.

    Output rows are -1 to height + 1, the source's edges repeat. Neighbouring columns that move equally are copied as one.
    """
    begin = 0
    while begin < width:
        rows_down, end = _rows_down(matrix, begin), begin + 1
        while end < width and _rows_down(matrix, end) == rows_down:
            end += 1
        offset[3 * begin : 3 * end] = rows_down
        for i in range(-1, height + 2):
            row = min(max(i + rows_down, 0), height - 1)
            _copy(source, 3 * (row * width + begin), 3 * (end - begin), aligned, (i + 1) * pitch + 3 * begin)
        begin = end


@njit(cache=True)
def _rows_down(matrix, j):
    """Rows from an output pixel of column j down to the source pixel at or above its place, as row 0 has it."""
    return np.int64(math.floor(affine_source(matrix, 0, j)[1] - 0.5))


@njit(cache=True)
def _interpolate(taps, place, pixel, shift, bicubic, out):
    """out[k] = what lies at place[k] if byte k of the four taps are those of pixel p - 1 to p + 2, p = pixel[k] + shift.

    Returns whether p is the pixel at or before every place: one may round to a whole number and be the next pixel's.
    """
    a, b, c, d = taps
    elsewhere = False
    for k in range(np.uintp(out.size)):
        p = pixel[k] + shift
        elsewhere |= math.floor(place[k]) != p
        near, far = (np.float64(b[k]), np.float64(c[k])), (np.float64(a[k]), np.float64(d[k]))
        t = place[k] - p
        value = cubic(far[0], near[0], near[1], far[1], t) if bicubic else linear(near[0], near[1], t)
        out[k] = truncate(value)
    return not elsewhere


# -- rotate: two fractional coordinates --------------------------------------------------------------------------------

# Greatest error of a pixel in float32, 8e-4, rounded up to a power of two. Weights: 2e-7 each by Horner's rule, and a
# point's sum of absolute weights is at most 1.5. Columns: 255 * 4 * 2e-7 and 8e-5 of rounding, 2.9e-4; rows: 1.5 times
# that, 319 * 4 * 2e-7 of their own weights and 1.1e-4 of rounding.
UNSURE = np.float32(2.0**-10)


@njit(cache=True)
def _rotate(source, height, width, matrix, fill, padded, scratch, target):
    pitch = 3 * (width + 2 * MARGIN)
    for y in range(height + 2 * MARGIN):
        _pad_row(source, min(max(y - MARGIN, 0), height - 1), width, padded, y * pitch)
    window, at = take(scratch, 0, 4 * width)
    tx, at = take(scratch, at, 4 * width)
    ty, at = take(scratch, at, 4 * width)
    value, at = take(scratch, at, 4 * (3 * width + 1))
    unsure, at = take(scratch, at, round_up(3 * width, 8) + 8)
    window, tx, ty = window.view(np.int32), tx.view(np.float32), ty.view(np.float32)
    value = value.view(np.float32)
    for i in range(height):
        begin, end = _begin_row(matrix, i, height, width, fill, target)
        _locate(matrix, i, begin, end, float(pitch), window, tx, ty)
        for j in range(begin, end):
            columns = columns_cubic(padded, np.int64(window[j]), pitch, ty[j])
            rows_cubic(columns, tx[j], value, 3 * (j - begin))
        size, row = 3 * (end - begin), 3 * i * width
        _truncate_all(value[:size], target[row + 3 * begin : row + 3 * end], unsure)
        _repair(source, height, width, matrix, i, begin, end, padded, pitch, window, unsure, target)


@njit(cache=True)
def _locate(matrix, i, begin, end, pitch, window, tx, ty):
    """Per column: where its 4 x 4 neighbours begin in the padded image, and its place between the inner four."""
    for j in range(np.uintp(begin), np.uintp(end)):
        x, y = affine_source(matrix, i, np.float64(j))
        x, y = x - 0.5, y - 0.5
        column, line = np.floor(x), np.floor(y)
        tx[j], ty[j] = x - column, y - line
        window[j] = (line + (MARGIN - 1)) * pitch + 3 * (column + (MARGIN - 1))


@njit(cache=True)
def _truncate_all(value, out, unsure):
    """out = clipped and truncated values; unsure[k] = 1 where value[k] is within UNSURE of a greater byte's beginning."""
    for k in range(np.uintp(out.size)):
        clipped = min(max(value[k], np.float32(0.0)), np.float32(255.0))
        nearest = np.float32(np.int32(clipped + np.float32(0.5)))
        out[k] = np.uint8(np.int32(clipped))
        unsure[k] = (abs(value[k] - nearest) <= UNSURE) & (nearest > np.float32(0.0))
    unsure[out.size : out.size + 8] = 0


@njit(cache=True)
def _repair(source, height, width, matrix, i, begin, end, padded, pitch, window, unsure, target):
    """Computes the unsure pixels of columns begin..end-1 in float64; where all neighbours are equal, the pixel is too."""
    eights, done = unsure.view(np.uint64), -1
    for word in range((3 * (end - begin) + 7) // 8):
        if eights[word] == 0:
            continue
        for k in range(8 * word, 8 * word + 8):
            j = begin + k // 3
            if unsure[k] == 0 or j == done:
                continue
            done = j
            if is_flat(padded, np.int64(window[j]), pitch):
                for c in range(3):
                    target[3 * (i * width + j) + c] = padded[window[j] + c]
            else:
                _sample_span(source, height, width, matrix, i, j, j + 1, True, target)
