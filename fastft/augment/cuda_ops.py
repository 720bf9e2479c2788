"""The second kernel: all ops on an image, then normalisation and erasing. One block carries out one image's plan.

Because of this, a block reads each op once, and its threads do not diverge. An op that needs the whole image
(histogram, extremes, mean) waits for a barrier and not for a launch. Between ops, an image alternates between two
buffers in global memory. Its 150 KB leave the second-level cache only under pressure. The arithmetic for pixels and
table entries is in ops.py.
"""

from numba import cuda, float32, int32, uint8, uint32

from beton_tools.base.pixels import CHANNELS
from fastft.augment import ops
from fastft.augment.erase import erase_pixel
from fastft.augment.ops import ENTRIES, STATISTICS
from fastft.augment.plan import CHAIN_DEPTH, JITTER, MAX_CHAINS, MAX_OPS
from fastft.recipe.constants import MAX_ERASE

OPS_THREADS = (32, 12)  # x along a pixel row, y over rows. More would not fit into a V100's registers
PLAIN_BUFFERS, AUGMIX_BUFFERS = 2, 3  # images in global memory per sample


@cuda.jit(device=True)
def _thread():
    return cuda.threadIdx.y * cuda.blockDim.x + cuda.threadIdx.x


@cuda.jit(device=True)
def _threads():
    return cuda.blockDim.x * cuda.blockDim.y


# -- points and tables -------------------------------------------------------------------------------------------------


@cuda.jit(device=True)
def _mean_luma(source, statistics):
    """Put the lumas' sum (int32: images below 2,900 pixels square) into statistics[0], then the mean."""
    if _thread() == 0:
        statistics[0] = 0
    cuda.syncthreads()
    total = int32(0)
    for i in range(CHANNELS * _thread(), source.size, CHANNELS * _threads()):
        total += int32(ops.luma(source[i], source[i + 1], source[i + 2]))
    cuda.atomic.add(statistics, 0, total)
    cuda.syncthreads()
    return ops.mean_luma(statistics[0], source.size // CHANNELS)


@cuda.jit(device=True)
def _measure(op, source, statistics):
    """Measure the image values that `ops.table_entry` needs."""
    if op == ops.EQUALIZE:
        for i in range(_thread(), ENTRIES, _threads()):
            statistics[i] = 0
        cuda.syncthreads()
        for i in range(CHANNELS * _thread(), source.size, CHANNELS * _threads()):
            for c in range(CHANNELS):
                cuda.atomic.add(statistics, c * ops.BYTE_VALUES + int32(source[i + c]), 1)
        cuda.syncthreads()
        if _thread() < CHANNELS:
            ops.accumulate(statistics, _thread())
    elif op == ops.AUTO_CONTRAST:
        least, greatest = ENTRIES, ENTRIES + CHANNELS
        if _thread() < CHANNELS:
            statistics[least + _thread()], statistics[greatest + _thread()] = ops.BYTE_VALUES - 1, 0
        cuda.syncthreads()
        for c in range(CHANNELS):
            low, high = int32(ops.BYTE_VALUES - 1), int32(0)
            for i in range(CHANNELS * _thread() + c, source.size, CHANNELS * _threads()):
                low, high = min(low, int32(source[i])), max(high, int32(source[i]))
            cuda.atomic.min(statistics, least + c, low)
            cuda.atomic.max(statistics, greatest + c, high)
    cuda.syncthreads()


@cuda.jit(device=True)
def _look_up(source, tables, target):
    cuda.syncthreads()
    for i in range(CHANNELS * _thread(), source.size, CHANNELS * _threads()):
        for c in range(CHANNELS):
            target[i + c] = tables[c * ops.BYTE_VALUES + int32(source[i + c])]


# -- pixels ------------------------------------------------------------------------------------------------------------


@cuda.jit(device=True)
def _saturate(source, factor, target):
    for i in range(CHANNELS * _thread(), source.size, CHANNELS * _threads()):
        grey = ops.luma(source[i], source[i + 1], source[i + 2])
        for c in range(CHANNELS):
            target[i + c] = ops.blend(grey, source[i + c], factor)


@cuda.jit(device=True)
def _sharpen(source, size, factor, target):
    pitch = CHANNELS * size
    for y in range(cuda.threadIdx.y, size, cuda.blockDim.y):
        border = y == 0 or y == size - 1
        for x in range(cuda.threadIdx.x, pitch, cuda.blockDim.x):
            i = y * pitch + x
            if border or x < CHANNELS or x >= pitch - CHANNELS:
                target[i] = source[i]
            else:
                total = int32(0)
                for above in range(i - pitch, i + pitch + 1, pitch):
                    for k in range(above - CHANNELS, above + CHANNELS + 1, CHANNELS):
                        total += int32(source[k])
                target[i] = ops.blend(ops.smooth(total, source[i]), source[i], factor)


@cuda.jit(device=True)
def _transform(source, size, matrix, fill, bicubic, target):
    for i in range(cuda.threadIdx.y, size, cuda.blockDim.y):
        for j in range(cuda.threadIdx.x, size, cuda.blockDim.x):
            x, y = ops.affine_source(matrix, i, j)
            to = CHANNELS * (i * size + j)
            seen = ops.inside(x, y, size, size)
            for c in range(CHANNELS):
                if not seen:
                    target[to + c] = fill[c]
                elif bicubic:
                    target[to + c] = ops.truncate(ops.sample_bicubic(source, size, size, x, y, c))
                else:
                    target[to + c] = ops.truncate(ops.sample_bilinear(source, size, size, x, y, c))


@cuda.jit(device=True)
def _box(source, size, step, across, weights, target):
    """Run one box pass. Edge pixels repeat.

    Pixels along the axis are `step` bytes apart, and its lines are `across` bytes apart.
    """
    reach, inner, edge = weights
    for y in range(cuda.threadIdx.y, size, cuda.blockDim.y):
        for x in range(cuda.threadIdx.x, CHANNELS * size, cuda.blockDim.x):
            p, c = x // CHANNELS, x % CHANNELS
            place, line = (y, p * across + c) if step > across else (p, y * across + c)
            total = uint32(0)
            for k in range(place - reach, place + reach + 1):
                total += uint32(source[line + min(max(k, 0), size - 1) * step])
            before = source[line + max(place - reach - 1, 0) * step]
            after = source[line + min(place + reach + 1, size - 1) * step]
            target[line + place * step] = ops.box_byte(total, uint32(before) + uint32(after), inner, edge)
    cuda.syncthreads()


@cuda.jit(device=True)
def _blur(source, size, sigma, target):
    """Run three box passes along rows and three along columns: an even number, so the result is in `source`."""
    if sigma == 0.0:
        return
    weights, pitch = ops.box_weights(sigma), CHANNELS * size
    for k in range(6):
        step, across = (CHANNELS, pitch) if k < 3 else (pitch, CHANNELS)
        if k % 2 == 0:
            _box(source, size, step, across, weights, target)
        else:
            _box(target, size, step, across, weights, source)


# -- an image's plan ---------------------------------------------------------------------------------------------------


@cuda.jit(device=True)
def _run_op(op, argument, source, target, size, fill, bicubic, statistics, tables):
    """Run one op on the whole image. Returns whether the result is in `target` (else it is in `source`)."""
    if op == ops.GAUSSIAN_BLUR:
        _blur(source, size, argument, target)
        return False
    if ops.is_point(op):
        mean = _mean_luma(source, statistics) if op == ops.CONTRAST else int32(0)
        for i in range(_thread(), ENTRIES, _threads()):
            tables[i] = ops.point_entry(op, i % ops.BYTE_VALUES, argument, mean)
        _look_up(source, tables, target)
    elif ops.is_table(op):
        _measure(op, source, statistics)
        for i in range(_thread(), ENTRIES, _threads()):
            tables[i] = ops.table_entry(op, i, argument, statistics)
        _look_up(source, tables, target)
    elif ops.is_affine(op):
        _transform(source, size, ops.affine_matrix(op, argument, size, size), fill, bicubic, target)
    elif op in (ops.COLOR, ops.GRAYSCALE):
        _saturate(source, float32(argument if op == ops.COLOR else 0.0), target)
    elif op == ops.SHARPNESS:
        _sharpen(source, size, float32(argument), target)
    cuda.syncthreads()
    return True


@cuda.jit(device=True)
def _run_ops(row, begin, end, image, other, size, fill, statistics, tables):
    """Run the row's ops begin..end-1. Returns whether the result is in `other` (else it is in `image`)."""
    swapped, bicubic = False, row.bicubic != 0
    for k in range(begin, end):
        op = row.op[k]
        if op != ops.IDENTITY:
            source, target = (other, image) if swapped else (image, other)
            moved = _run_op(op, row.argument[k], source, target, size, fill, bicubic, statistics, tables)
            swapped = swapped != moved
    return swapped


@cuda.jit(device=True)
def _has_chains(row):
    total = float32(0.0)
    for chain in range(MAX_CHAINS):
        total += row.chain_weights[chain]
    return total > 0


@cuda.jit(device=True)
def _blend_mixture(image, mixed, weight):
    """Do AugMix's last step: truncate the chains' sum to bytes and blend it into the image."""
    for i in range(_thread(), image.size, _threads()):
        image[i] = ops.blend(image[i], uint8(int32(min(mixed[i], float32(255.0)))), weight)
    cuda.syncthreads()


@cuda.jit(device=True)
def _run_chains(row, buffers, b, mixing, mixed, size, fill, statistics, tables):
    """Run all ops in the row on buffers[0, b], or AugMix's chains on copies of it.

    Returns which buffer holds the result. For AugMix, `mixed` gets the weighted chains' float32 sum. A last chain without
    weight is colour jitter for the mixture.
    """
    spare = 1 if mixing else 0
    image, first, second = buffers[0, b], buffers[spare, b], buffers[spare + 1, b]
    jitter = mixing and row.op[JITTER] != ops.IDENTITY and row.chain_weights[MAX_CHAINS - 1] == 0
    swapped = False
    if mixing:
        for i in range(_thread(), image.size, _threads()):
            mixed[i] = float32(0.0)
    for chain in range(MAX_CHAINS if mixing else 1):
        weight, last_chain = row.chain_weights[chain], jitter and chain == MAX_CHAINS - 1
        if mixing and weight == 0 and not last_chain:
            continue
        if last_chain:
            _blend_mixture(image, mixed, row.blend)
        if mixing:
            for i in range(_thread(), image.size, _threads()):
                first[i] = image[i]
            cuda.syncthreads()
        begin, length = chain * CHAIN_DEPTH, CHAIN_DEPTH if mixing else MAX_OPS
        swapped = _run_ops(row, begin, begin + length, first, second, size, fill, statistics, tables)
        if mixing:
            last = second if swapped else first
            for i in range(_thread(), image.size, _threads()):
                mixed[i] += weight * float32(last[i])
    if mixing and not jitter:
        _blend_mixture(image, mixed, row.blend)
        return 0
    return spare + (1 if swapped else 0)


@cuda.jit(device=True)
def _box_over(row, y, x):
    """Return the last erase box that covers an output pixel, or -1."""
    for k in range(MAX_ERASE):
        box = MAX_ERASE - 1 - k
        top, left = row.erase[box, 0], row.erase[box, 1]
        if top <= y < top + row.erase[box, 2] and left <= x < left + row.erase[box, 3]:
            return box
    return -1


@cuda.jit(device=True)
def _finish(row, image, size, normalised, quantiles, dtype, out):
    """Write the normalised image with its boxes erased to out (flat)."""
    for y in range(cuda.threadIdx.y, size, cuda.blockDim.y):
        for x in range(cuda.threadIdx.x, size, cuda.blockDim.x):
            pixel, box = y * size + x, _box_over(row, y, x)
            if box >= 0:
                erase_pixel(row.noise_key, row.erase_mode, box, pixel, quantiles, out, dtype)
            else:
                for c in range(CHANNELS):
                    i = CHANNELS * pixel + c
                    out[i] = normalised[c * ops.BYTE_VALUES + int32(image[i])]


def ops_kernel(plan, size, buffers, mixed, fill, normalised, quantiles, dtype, out):
    """Write the result of row b's ops on buffers[0, b], normalised and erased, to out[b].

    There is one block per image.

    Args:
        buffers: (2, or 3 for AugMix, B, size*size*3) uint8.
        mixed: (B, size*size*3) float32 for AugMix, else (1, 1).
        fill: (3,) uint8.
        normalised: (768,) in dtype's storage type (erase.DTYPES).
        out: (B, size*size*3) in dtype's storage type.
        quantiles: rng.HALF_NORMAL.
    """
    statistics = cuda.shared.array(STATISTICS, int32)
    tables = cuda.shared.array(ENTRIES, uint8)
    b, row = cuda.blockIdx.x, plan[cuda.blockIdx.x]
    mixing = mixed.shape[1] == out.shape[1] and _has_chains(row)
    mixture = mixed[b if mixing else 0]
    last = _run_chains(row, buffers, b, mixing, mixture, size, fill, statistics, tables)
    _finish(row, buffers[last, b], size, normalised, quantiles, dtype, out[b])
