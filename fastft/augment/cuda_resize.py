"""The first kernel: resizes regions of different sizes, antialiased, from the packed buffer to square images.

One launch does both passes in Pillow's resize. A block makes one tile in an image. It computes the weights for the tile's
pixels, then takes 16 source lines at a time through the first pass into shared memory, and adds them to the second pass's
sums. Integer sums do not depend on the order, so the result equals Pillow's to the bit, and shared memory does not grow with
the crop.

The first pass goes along the rows or, where Pillow 13 goes the other way, along the columns. *inner* is its axis (0:
y, 1: x), *outer* is the other one, and a source line runs along the inner axis.
"""

from numba import cuda, int32, uint8

from beton_tools.base.pixels import CHANNELS
from fastft.augment.resize import (
    CUDA_WEIGHTS,
    PRECISION_BITS,
    ROUND,
    pixel_taps,
    reflect,
    source_region,
    tap_pitch,
    turned,
    vertical_first,
    weighted_byte,
)

INNER = OUTER = 32  # most pixels in a tile along either axis
ROW = CHANNELS * INNER
LINES = 16  # source lines per round
RESIZE_THREADS = (ROW, 4)

# One thread computes these numbers for its block. They are in shared memory, because in registers they would halve the
# occupancy. First the image's:
AXIS, ALONG, ACROSS, REGION_Y, REGION_X, INNER_PITCH, OUTER_PITCH, MAX_PIXELS, MAX_ROWS = range(9)
INNER_BEGIN, OUTER_BEGIN, PIXELS, ROWS, LINE_BEGIN, LINE_END = range(9, 15)  # the tile's
FIELDS = 15


@cuda.jit(device=True)
def _image_geometry(row, size, geometry):
    """Compute an image's geometry.

    This is the passes' order, byte steps along and across source lines, tap pitches, and the tile size.
    """
    y, x, _, width = source_region(row, size)
    down_first = vertical_first(row.crop[2], row.crop[3], row.resize[0], row.resize[1])
    inner = 0 if down_first else 1
    stride, bicubic = CHANNELS * width, row.bicubic != 0
    geometry[AXIS], geometry[REGION_Y], geometry[REGION_X] = inner, y, x
    geometry[ALONG], geometry[ACROSS] = (stride, CHANNELS) if down_first else (CHANNELS, stride)
    geometry[INNER_PITCH] = tap_pitch(row.crop[2 + inner], row.resize[inner], bicubic)
    geometry[OUTER_PITCH] = tap_pitch(row.crop[3 - inner], row.resize[1 - inner], bicubic)
    geometry[MAX_PIXELS] = min(cuda.blockDim.x // CHANNELS, CUDA_WEIGHTS // geometry[INNER_PITCH])
    geometry[MAX_ROWS] = min(OUTER, CUDA_WEIGHTS // geometry[OUTER_PITCH])


@cuda.jit(device=True)
def _tile_geometry(tile, size, geometry):
    """Compute where tile number `tile` begins and how many pixels it has, along both axes."""
    tiles = (size + geometry[MAX_PIXELS] - 1) // geometry[MAX_PIXELS]
    geometry[INNER_BEGIN] = tile % tiles * geometry[MAX_PIXELS]
    geometry[OUTER_BEGIN] = tile // tiles * geometry[MAX_ROWS]
    geometry[PIXELS] = min(geometry[MAX_PIXELS], size - geometry[INNER_BEGIN])
    geometry[ROWS] = min(geometry[MAX_ROWS], size - geometry[OUTER_BEGIN])


@cuda.jit(device=True)
def _prepare_taps(row, geometry, taps):
    """Compute the taps for the tile's pixels along both axes. First source pixels count from the region's edge."""
    first, count, weights = taps
    thread = cuda.threadIdx.x + cuda.threadIdx.y * cuda.blockDim.x
    for k in range(thread, 2 * INNER, cuda.blockDim.x * cuda.blockDim.y):
        side, p = k // INNER, k % INNER
        if p < geometry[PIXELS + side]:
            axis = geometry[AXIS] if side == 0 else 1 - geometry[AXIS]
            crop, resized = row.crop[2 + axis], row.resize[axis]
            i = reflect(row.window[axis] + geometry[INNER_BEGIN + side] + p, resized)
            at = p * geometry[INNER_PITCH + side]
            source, number = pixel_taps(i, crop, resized, row.bicubic != 0, weights[side], at)
            first[side, p] = source - (geometry[REGION_Y + axis] - row.crop[axis])
            count[side, p] = number


@cuda.jit(device=True)
def _source_lines(taps, geometry):
    """Return the source lines under the tile's outer filters."""
    first, count, _ = taps
    begin, end = first[1, 0], first[1, 0] + count[1, 0]
    for k in range(1, geometry[ROWS]):
        begin, end = min(begin, first[1, k]), max(end, first[1, k] + count[1, k])
    geometry[LINE_BEGIN], geometry[LINE_END] = begin, end


@cuda.jit(device=True)
def _first_pass(packed, base, line, lines, geometry, taps, middle):
    """Set middle[l, x] to the tile's byte x in source line `line + l`, weighted along the inner axis."""
    first, count, weights = taps
    x, along = cuda.threadIdx.x, geometry[ALONG]
    if x < CHANNELS * geometry[PIXELS]:
        i, channel = x // CHANNELS, x % CHANNELS
        start = base + first[0, i] * along + channel
        for k in range(cuda.threadIdx.y, lines, cuda.blockDim.y):
            at = start + (line + k) * geometry[ACROSS]
            number, weight = count[0, i], i * geometry[INNER_PITCH]
            middle[k, x] = weighted_byte(packed, at, along, number, weights[0], weight)


@cuda.jit(device=True)
def _second_pass(middle, line, lines, geometry, taps, sums):
    """Add the lines to the sums for every outer pixel whose filter covers them."""
    first, count, weights = taps
    x = cuda.threadIdx.x
    if x < CHANNELS * geometry[PIXELS]:
        for o in range(cuda.threadIdx.y, geometry[ROWS], cuda.blockDim.y):
            begin, end = max(first[1, o], line), min(first[1, o] + count[1, o], line + lines)
            at = o * geometry[OUTER_PITCH] - first[1, o]
            total = sums[o, x]
            for k in range(begin, end):
                total += int32(middle[k - line, x]) * weights[1, at + k]
            sums[o, x] = total


@cuda.jit(device=True)
def _store_tile(sums, row, size, geometry, image):
    """Write the tile's clipped bytes to the image (flat), mirrored if the row says so."""
    x = cuda.threadIdx.x
    if x < CHANNELS * geometry[PIXELS]:
        i, channel = geometry[INNER_BEGIN] + x // CHANNELS, x % CHANNELS
        for k in range(cuda.threadIdx.y, geometry[ROWS], cuda.blockDim.y):
            o = geometry[OUTER_BEGIN] + k
            line, column = turned(i, o, row.flip, size) if geometry[AXIS] == 0 else turned(o, i, row.flip, size)
            byte = uint8(min(max(sums[k, x] >> PRECISION_BITS, 0), 255))
            image[(line * size + column) * CHANNELS + channel] = byte


def resize_kernel(packed, offsets, plan, size, images):
    """Write row b's region, resized, windowed and mirrored, to images[b]. Blocks: x over tiles, y over images.

    An image that would shrink by more than MOST_SHRINK is not written, because its taps do not fit.

    Args:
        packed: uint8. Region b (resize.source_region) begins at offsets[b] (int64).
        images: (B, size * size * 3) uint8.
    """
    geometry = cuda.shared.array(FIELDS, int32)
    first = cuda.shared.array((2, INNER), int32)  # for inner and outer pixels
    count = cuda.shared.array((2, INNER), int32)
    weights = cuda.shared.array((2, CUDA_WEIGHTS), int32)
    middle = cuda.shared.array((LINES, ROW), uint8)
    sums = cuda.shared.array((OUTER, ROW), int32)
    taps = (first, count, weights)

    b = cuda.blockIdx.y
    leader = cuda.threadIdx.x == 0 and cuda.threadIdx.y == 0
    if leader:
        _image_geometry(plan[b], size, geometry)
    cuda.syncthreads()
    if geometry[MAX_PIXELS] == 0 or geometry[MAX_ROWS] == 0:
        return
    tiles = (
        (size + geometry[MAX_PIXELS] - 1)
        // geometry[MAX_PIXELS]
        * ((size + geometry[MAX_ROWS] - 1) // geometry[MAX_ROWS])
    )
    for tile in range(cuda.blockIdx.x, tiles, cuda.gridDim.x):
        if leader:
            _tile_geometry(tile, size, geometry)
        cuda.syncthreads()
        _prepare_taps(plan[b], geometry, taps)
        for k in range(cuda.threadIdx.y, OUTER, cuda.blockDim.y):
            sums[k, cuda.threadIdx.x] = ROUND
        cuda.syncthreads()
        if leader:
            _source_lines(taps, geometry)
        cuda.syncthreads()
        for line in range(geometry[LINE_BEGIN], geometry[LINE_END], LINES):
            lines = min(LINES, geometry[LINE_END] - line)
            _first_pass(packed, offsets[b], line, lines, geometry, taps, middle)
            cuda.syncthreads()
            _second_pass(middle, line, lines, geometry, taps, sums)
            cuda.syncthreads()
        _store_tile(sums, plan[b], size, geometry, images[b])
        cuda.syncthreads()
