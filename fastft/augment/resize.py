"""Antialiased bicubic and bilinear resize, equal to Pillow's on every pixel.

Pillow's rule (tested here against Pillow itself): for each output coordinate, the filter is stretched by the scale
when shrinking. Its taps are normalised in float64 and rounded to 22-bit fixed point. Each of the two passes rounds its
result to uint8. The horizontal pass comes first, except (since Pillow 13) when the height shrinks by more than twice the
pixels that the width does. The other order differs by up to 12 levels.

The geometry is as in a plan row: the source's rectangle `crop` is resized to `resize`, and the output is the part of the
resized image that begins at `window`. Coordinates outside the resized image are reflected. The given pixels are a source
region that covers every tap. Filters are cut off at the crop's edges, not at the region's.

On the CPU, both passes run sixteen lanes wide (simd.py). The horizontal pass works on sixteen image rows at a time,
transposed so that one tap for one output pixel is 3 channels x 16 rows = 48 adjacent bytes. The vertical pass works
on 48 adjacent bytes in a row.
"""

import math

import numpy as np

from beton_tools.base.jit import njit
from fastft.augment import simd
from fastft.augment.plan import HFLIP, TRANSPOSE, VFLIP

PRECISION_BITS = 22  # Pillow: 32 bits minus 8 for the pixel minus 2 for overshoot
ROUND = 1 << (PRECISION_BITS - 1)
BLOCK = 3 * simd.LANES  # bytes that one call to `_weighted_block` makes

# CUDA kernel: weights for a tile's pixels along one axis, enough to reduce 65,535 pixels (a JPEG's most) to 224
CUDA_WEIGHTS = 1184
MOST_SHRINK = (CUDA_WEIGHTS - 1) // 4  # limit for one side. Shrinking s times takes 4 s + 1 bicubic taps

OK, REGION_TOO_SMALL, SCRATCH_TOO_SMALL = 0, 1, 2


@njit()
def filter_weight(x: float, bicubic: bool) -> float:
    """Return the kernel at distance x: Keys' cubic with a = -0.5 (support 2), or the triangle (support 1)."""
    x = abs(x)
    if bicubic:
        if x < 1.0:
            return (1.5 * x - 2.5) * x * x + 1.0
        if x < 2.0:
            return (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
        return 0.0
    return 1.0 - x if x < 1.0 else 0.0


@njit()
def reflect(i: int, size: int) -> int:
    """Mirror coordinate i into 0..size-1 without repeating the edge, as torchvision's reflect padding does."""
    if size == 1:
        return 0
    i = abs(i) % (2 * size - 2)
    return min(i, 2 * size - 2 - i)


@njit()
def filter_support(crop: int, resized: int, bicubic: bool) -> float:
    """Return half the stretched filter's width, in source pixels."""
    return (2.0 if bicubic else 1.0) * max(crop / resized, 1.0)


@njit()
def tap_pitch(crop: int, resized: int, bicubic: bool) -> int:
    """Return the most taps that one output pixel can have."""
    return 2 * np.int64(math.ceil(filter_support(crop, resized, bicubic))) + 1


@njit()
def pixel_taps(i, crop, resized, bicubic, weights, at):
    """Write the 22-bit weights for resized pixel i to `weights[at:]`. Returns (first source pixel, count).

    Float64 operations are in Pillow's order, so that every rounding is the same.
    """
    scale = crop / resized
    centre = (i + 0.5) * scale
    support = filter_support(crop, resized, bicubic)
    inverse = 1.0 / max(scale, 1.0)
    first = max(int(centre - support + 0.5), 0)
    count = min(int(centre + support + 0.5), crop) - first
    total = 0.0
    for t in range(count):
        total += filter_weight((t + first - centre + 0.5) * inverse, bicubic)
    for t in range(count):
        weight = filter_weight((t + first - centre + 0.5) * inverse, bicubic)
        weight = weight / total if total != 0.0 else weight
        weights[at + t] = np.int32(weight * (1 << PRECISION_BITS) + (0.5 if weight >= 0 else -0.5))
    return first, count


@njit()
def axis_taps(crop, resized, window, size, bicubic, offset, taps):
    """Compute the taps for a whole axis and return their span.

    Positions are pixels in a region that begins at `offset` in the crop.
    """
    first, count, weights, pitch = taps
    low, high = crop, -offset
    for i in range(size):
        x, n = pixel_taps(reflect(window + i, resized), crop, resized, bicubic, weights, i * pitch)
        first[i], count[i] = x - offset, n
        low, high = min(low, x - offset), max(high, x - offset + n)
    return low, high


@njit()
def vertical_first(crop_h: int, crop_w: int, resized_h: int, resized_w: int) -> bool:
    """Return Pillow 13's order for the passes (its pull request 9549): rows first when that is clearly less work."""
    saved = crop_h - resized_h
    return saved > 0 and saved > 2 * (crop_w - resized_w)


@njit()
def resized_shape(height, width, short_side):
    """Return (h, w) with the shorter side `short_side` and the longer one truncated, as in torchvision's Resize."""
    if height <= width:
        return short_side, int(short_side * width / height)
    return int(short_side * height / width), short_side


@njit()
def turned(y, x, flip, size):
    """Return where pixel (y, x) in a window goes according to the bits `flip` in a plan row."""
    y = size - 1 - y if flip & VFLIP else y
    x = size - 1 - x if flip & HFLIP else x
    return (x, y) if flip & TRANSPOSE else (y, x)


@njit()
def turn(source, flip, size, target):
    """Write source, `turned`, to target. Both are flat images with size x size pixels."""
    for y in range(size):
        for x in range(size):
            line, column = turned(y, x, flip, size)
            for c in range(3):
                target[3 * (line * size + column) + c] = source[3 * (y * size + x) + c]


@njit()
def _touched(window, size, resized):
    """Return the first and last pixel on the resized axis that a window with `size` pixels shows, with reflections."""
    low, high = window, window + size - 1
    first, last = max(low, 0), min(high, resized - 1)
    if low < 0:
        last = max(last, min(-low, resized - 1))
    if high >= resized:
        first = min(first, max(2 * (resized - 1) - high, 0))
    return first, last


@njit()
def _axis_region(crop, resized, window, size, bicubic):
    """Return (begin, end) for the crop's pixels that lie under the filter taps for the pixels that the window shows."""
    first, last = _touched(window, size, resized)
    scale = crop / resized
    support = filter_support(crop, resized, bicubic)
    begin = max(int((first + 0.5) * scale - support + 0.5), 0)
    end = min(int((last + 0.5) * scale + support + 0.5), crop)
    return begin, end


@njit()
def source_region(row, size):
    """Return (y, x, h, w) for the source pixels that a plan row's size x size output touches.

    They lie inside the row's crop.
    """
    y0, y1 = _axis_region(row.crop[2], row.resize[0], row.window[0], size, row.bicubic)
    x0, x1 = _axis_region(row.crop[3], row.resize[1], row.window[1], size, row.bicubic)
    return row.crop[0] + y0, row.crop[1] + x0, y1 - y0, x1 - x0


@njit()
def _fill_regions(plan, size, regions):
    for i in range(len(plan)):
        y, x, h, w = source_region(plan[i], size)
        regions[i, 0], regions[i, 1], regions[i, 2], regions[i, 3] = y, x, h, w


def source_regions(plan: np.ndarray, size: int) -> np.ndarray:
    """Return `source_region` for every row: (B, 4) int32 with y, x, h, w."""
    regions = np.empty((len(plan), 4), np.int32)
    _fill_regions(plan, size, regions)
    return regions


# -- both passes ----------------------------------------------------------------------------------------------------


@njit()
def weighted_byte(source, start, step, count, weights, at):
    """Return clip(sum over taps t of source[start + t*step] * weights[at + t]), which is one byte in either pass."""
    total = np.int32(ROUND)
    for t in range(count):
        total += np.int32(source[start + t * step]) * weights[at + t]
    return np.uint8(min(max(total >> PRECISION_BITS, 0), 255))


@njit()
def _weighted_block(source, start, step, count, weights, at, target, to):
    """Compute `weighted_byte` for 48 adjacent bytes."""
    a, b, c = simd.spread(ROUND), simd.spread(ROUND), simd.spread(ROUND)
    for t in range(count):
        weight, i = weights[at + t], start + t * step
        a = simd.multiply_add(a, simd.load_bytes(source, i), weight)
        b = simd.multiply_add(b, simd.load_bytes(source, i + simd.LANES), weight)
        c = simd.multiply_add(c, simd.load_bytes(source, i + 2 * simd.LANES), weight)
    simd.store_clipped(target, to, a, PRECISION_BITS)
    simd.store_clipped(target, to + simd.LANES, b, PRECISION_BITS)
    simd.store_clipped(target, to + 2 * simd.LANES, c, PRECISION_BITS)


@njit()
def _gather_block(pixels, start, stride, rows, width, columns):
    """Set columns[i*16 + r] to row r's byte i, for the first `width` bytes in 16 rows.

    If there are fewer rows, the last one is repeated.
    """
    whole = width // simd.LANES * simd.LANES
    for i in range(0, whole, simd.LANES):
        simd.transpose_bytes(pixels, start + i, stride, rows, columns, i * simd.LANES, simd.LANES)
    for i in range(whole, width):
        for r in range(simd.LANES):
            columns[i * simd.LANES + r] = pixels[start + min(r, rows - 1) * stride + i]


@njit()
def _horizontal(pixels, stride, rows, width, size, flip, taps, columns, narrow, out, out_pitch):
    """Resize rows with `width` pixels to rows with `size`, sixteen at a time.

    `out` must hold a multiple of sixteen rows.
    """
    first, count, weights, pitch = taps
    for top in range(0, rows, simd.LANES):
        _gather_block(pixels, top * stride, stride, rows - top, width * 3, columns)
        for x in range(size):
            to = (size - 1 - x if flip else x) * BLOCK
            _weighted_block(columns, first[x] * BLOCK, BLOCK, count[x], weights, x * pitch, narrow, to)
        for i in range(0, out_pitch, simd.LANES):
            simd.transpose_bytes(narrow, i * simd.LANES, simd.LANES, simd.LANES, out, top * out_pitch + i, out_pitch)


@njit()
def _vertical(pixels, stride, width, size, taps, out):
    """Resize rows with `width` bytes to `size` rows with `width` bytes, back to back.

    A row's last block overlaps.
    """
    first, count, weights, pitch = taps
    for y in range(size):
        start, to, at = first[y] * stride, y * width, y * pitch
        if width < BLOCK:
            for i in range(width):
                out[to + i] = weighted_byte(pixels, start + i, stride, count[y], weights, at)
        else:
            for i in range(0, width, BLOCK):
                block = min(i, width - BLOCK)
                _weighted_block(pixels, start + block, stride, count[y], weights, at, out, to + block)


@njit()
def _allocate_taps(scratch, at, size, pitch):
    """Take scratch for one axis. Returns (first, count, weights, pitch), and where the rest begins."""
    first, at = simd.take(scratch, at, size * 4)
    count, at = simd.take(scratch, at, size * 4)
    weights, at = simd.take(scratch, at, size * pitch * 4)
    return (first.view(np.int32), count.view(np.int32), weights.view(np.int32), pitch), at


@njit()
def _scratch_size(region_h: int, region_w: int, size: int, pitch_y: int, pitch_x: int) -> int:
    """Return the scratch bytes needed, whichever pass comes first.

    They hold taps, columns, narrow, first pass and second pass.
    """
    taps = size * 4 * (pitch_y + pitch_x + 4)
    wide_rows = simd.round_up(max(region_h, size), simd.LANES)
    row_pitch = simd.round_up(size * 3, simd.LANES)
    return taps + BLOCK * (region_w + size + simd.LANES) + wide_rows * row_pitch + size * region_w * 3 + 10 * 64


@njit()
def resize_scratch_size(height: int, width: int, size: int) -> int:
    """Return scratch bytes that suffice for every crop up to height x width, resized to at least size x size."""
    return _scratch_size(height, width, size, tap_pitch(height, size, True), tap_pitch(width, size, True))


@njit()
def resize_region(pixels, stride, region, crop, resize, window, flip, bicubic, size, scratch, out):
    """Resize one image: from a crop's region to size x size x 3 bytes in `out`. Returns OK, or what was too small.

    region and crop (y, x, h, w in source pixels), resize and window are int64 tuples, and flip and bicubic are bools, so
    that one set of types is compiled once.

    Args:
        pixels: flat uint8. Row y in the region begins at y*stride.
        out: flat uint8, at least size*size*3 bytes.
        scratch: flat uint8, at least `resize_scratch_size` bytes.
    """
    pitch_y, pitch_x = tap_pitch(crop[2], resize[0], bicubic), tap_pitch(crop[3], resize[1], bicubic)
    rows, width, row_bytes = region[2], region[3], size * 3
    if _scratch_size(rows, width, size, pitch_y, pitch_x) > scratch.size or out.size < size * row_bytes:
        return SCRATCH_TOO_SMALL
    taps_y, at = _allocate_taps(scratch, np.int64(0), size, pitch_y)
    taps_x, at = _allocate_taps(scratch, at, size, pitch_x)
    top, bottom = axis_taps(crop[2], resize[0], window[0], size, bicubic, region[0] - crop[0], taps_y)
    left, right = axis_taps(crop[3], resize[1], window[1], size, bicubic, region[1] - crop[1], taps_x)
    given = pixels.size >= (rows - 1) * stride + width * 3
    if top < 0 or left < 0 or bottom > rows or right > width or not given:
        return REGION_TOO_SMALL
    if not flip and crop[2] == size and crop[3] == size and resize == (size, size) and window == (0, 0):
        begin = (crop[0] - region[0]) * stride + (crop[1] - region[1]) * 3
        for y in range(size):  # has that size already
            at = begin + y * stride
            simd.copy(pixels[at : at + row_bytes], out[y * row_bytes : (y + 1) * row_bytes])
        return OK

    row_pitch = simd.round_up(row_bytes, simd.LANES)
    columns, at = simd.take(scratch, at, width * BLOCK)
    narrow, at = simd.take(scratch, at, row_pitch * simd.LANES)
    narrowed, at = simd.take(scratch, at, simd.round_up(max(rows, size), simd.LANES) * row_pitch)
    if vertical_first(crop[2], crop[3], resize[0], resize[1]):
        shortened, at = simd.take(scratch, at, size * width * 3)
        _vertical(pixels, stride, width * 3, size, taps_y, shortened)
        _horizontal(shortened, width * 3, size, width, size, flip, taps_x, columns, narrow, narrowed, row_pitch)
        for y in range(size):
            begin = y * row_pitch
            simd.copy(narrowed[begin : begin + row_bytes], out[y * row_bytes : (y + 1) * row_bytes])
    else:
        _horizontal(pixels, stride, rows, width, size, flip, taps_x, columns, narrow, narrowed, row_pitch)
        _vertical(narrowed, row_pitch, row_bytes, size, taps_y, out)
    return OK
