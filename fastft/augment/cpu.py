"""The CPU back end: turns decoded bytes into normalised images, one image at a time so that it stays in cache.

If your loader has just decoded an image inside its own parallel loop, use it like this:

    augment = CpuAugment(policy, size, dtype="bfloat16")
    scratch = augment.new_scratch(threads, max_height, max_width)  # (threads, bytes) uint8
    status = augment_image(pixels, stride, region, row, augment.finish, scratch[thread], out[b])

`pixels` (flat uint8) holds the source's region (y, x, h, w), as resize.source_region gives it, and its row r begins at
r*stride. `row` is one row in the plan. `out[b]` is (size, size, bytes per pixel) uint8: float32, or the half types as
uint16, are viewed as bytes, so that one function is compiled for all of them. The status is resize.OK, or the reason why
nothing was written.

For a batch that was decoded into one packed buffer beforehand, call `augment(packed, offsets, plan)`.
"""

from typing import Any, NamedTuple

import numpy as np

from beton_tools.base.cgroup import usable_cpus
from beton_tools.base.errors import UserError
from beton_tools.base.jit import njit
from fastft.augment.erase import DTYPES, FLOAT16, FLOAT32, UINT8, bfloat16_bits, erase, float16_bits
from fastft.augment.ops import IDENTITY, blend
from fastft.augment.ops_image import look_up, op_scratch_size, run_op
from fastft.augment.plan import CHAIN_DEPTH, HFLIP, JITTER, MAX_CHAINS, MAX_OPS, TRANSPOSE, VFLIP
from fastft.augment.policies import AugmentPolicy
from fastft.augment.resize import (
    OK,
    REGION_TOO_SMALL,
    SCRATCH_TOO_SMALL,
    resize_region,
    resize_scratch_size,
    source_region,
    turn,
)
from fastft.augment.simd import copy, take
from fastft.augment.threads import run_in_threads

REASONS = {
    REGION_TOO_SMALL: "its pixels do not cover what the plan touches. Decode source_regions of the plan",
    SCRATCH_TOO_SMALL: "the scratch is too small. Make it with new_scratch for the largest image",
}


class Finish(NamedTuple):
    """Parameters that all images in a run share."""

    table: np.ndarray  # uint8, viewing (768,) in the output's storage type: each byte's normalised value, by channel
    fill: np.ndarray  # (3,) uint8: colour for areas that geometric ops uncover
    dtype: int  # erase.FLOAT32, FLOAT16 or BFLOAT16. With UINT8 pixels stay as they are, and plans must not erase


@njit()
def _run_ops(row, begin, end, image, other, size, fill, scratch):
    """Run the row's ops begin..end-1, alternating between `image` and `other`. Returns the one that holds the result.

    Pass no literal integers: Numba would compile the function again for each of them.
    """
    for k in range(begin, end):
        if row.op[k] != IDENTITY:
            op, bicubic = np.int64(row.op[k]), row.bicubic != 0
            run_op(op, row.argument[k], image, other, size, size, fill, bicubic, scratch)
            image, other = other, image
    return image


@njit(inline="always")
def _mix_chains(row, image, mixed, first, second, size, fill, scratch):
    """Mix chains as timm's AugMix: sum the weighted chains in float32, truncate to bytes, blend into `image`."""
    mixed[:] = 0
    for chain in range(MAX_CHAINS):
        weight = row.chain_weights[chain]
        if weight > 0:
            copy(image, first)
            begin = chain * CHAIN_DEPTH
            last = _run_ops(row, begin, begin + CHAIN_DEPTH, first, second, size, fill, scratch)
            for i in range(image.size):
                mixed[i] += weight * np.float32(last[i])
    for i in range(image.size):
        clipped = np.uint8(np.int32(min(mixed[i], np.float32(255.0))))
        image[i] = blend(image[i], clipped, row.blend)


@njit()
def _as_tuple2(pair):
    return np.int64(pair[0]), np.int64(pair[1])


@njit()
def _as_tuple4(box):
    return np.int64(box[0]), np.int64(box[1]), np.int64(box[2]), np.int64(box[3])


@njit()
def image_scratch_size(height: int, width: int, size: int) -> int:
    """Return the scratch bytes that one image needs for a crop up to height x width."""
    images = 7 * size * size * 3 + 4 * 64
    return images + max(resize_scratch_size(height, width, size), op_scratch_size(size, size))


@njit()
def _normalise_and_erase(image, row, size, dtype, table, out):
    look_up(image, table, out)
    erase(row, size, out, dtype)


@njit()
def augment_image(pixels, stride, region, row, finish, scratch, out):
    """Resize, flip, run ops, normalise and erase one image. The module docstring explains the arguments."""
    size = out.shape[0]
    count = size * size * 3
    image, at = take(scratch, 0, count)
    first, at = take(scratch, at, count)
    second, at = take(scratch, at, count)
    mixed, at = take(scratch, at, count * 4)
    rest = scratch[at:]
    if rest.size < op_scratch_size(size, size):
        return SCRATCH_TOO_SMALL
    crop, target, window = _as_tuple4(row.crop), _as_tuple2(row.resize), _as_tuple2(row.window)
    flip, turns, bicubic = row.flip & HFLIP != 0, row.flip & (VFLIP | TRANSPOSE), row.bicubic != 0
    resized = first if turns else image
    status = resize_region(pixels, stride, _as_tuple4(region), crop, target, window, flip, bicubic, size, rest, resized)
    if status != OK:
        return status
    if turns:
        turn(resized, turns, size, image)
    begin = np.int64(0)
    if row.chain_weights.sum() > 0:
        _mix_chains(row, image, mixed.view(np.float32), first, second, size, finish.fill, rest)
        begin = np.int64(JITTER if row.chain_weights[MAX_CHAINS - 1] == 0 else MAX_OPS)
    last = _run_ops(row, begin, np.int64(MAX_OPS), image, first, size, finish.fill, rest)
    flat = out.reshape(-1)
    if finish.dtype == UINT8:
        copy(last, flat)
    elif finish.dtype == FLOAT32:
        _normalise_and_erase(last, row, size, finish.dtype, finish.table.view(np.float32), flat.view(np.float32))
    else:
        _normalise_and_erase(last, row, size, finish.dtype, finish.table.view(np.uint16), flat.view(np.uint16))
    return OK


# -- batches ----------------------------------------------------------------------------------------------------------


@njit(nogil=True)
def _augment_rows(thread, packed, offsets, plan, finish, scratch, out, status):
    for b in range(thread, len(plan), len(scratch)):
        region = source_region(plan[b], out.shape[1])
        pixels = packed[offsets[b] : offsets[b] + region[2] * region[3] * 3]
        status[b] = augment_image(pixels, region[3] * 3, region, plan[b], finish, scratch[thread], out[b])


def normalise_table(mean: Any, std: Any, dtype: int) -> np.ndarray:
    """Return each byte's normalised value per channel, (768,), in `dtype`'s storage type.

    It is ((v / 255) - mean) / std in float32, as in torchvision.
    """
    levels = np.arange(256, dtype=np.float32) / np.float32(255)
    mean, std = np.asarray(mean, np.float32)[:, None], np.asarray(std, np.float32)[:, None]
    table = ((levels - mean) / std).reshape(-1)
    if dtype == FLOAT32:
        return table
    bits = float16_bits if dtype == FLOAT16 else bfloat16_bits
    return np.array([bits(v) for v in table], np.uint16)


class CpuAugment:
    """Carries out plans on the CPU: turns regions packed as uint8 into (B, size, size, 3), normalised.

    dtype is "float32", "float16" or "bfloat16". The last two are written as uint16 bit patterns.
    """

    def __init__(self, policy: AugmentPolicy, size: int, dtype: str = "float32") -> None:
        if dtype not in DTYPES:
            raise UserError(f"dtype {dtype!r} is not supported. Use one of {', '.join(DTYPES)}")
        self.size, code = size, DTYPES.index(dtype)
        table = normalise_table(policy.mean, policy.std, code)
        self.storage = table.dtype
        self.finish = Finish(table.view(np.uint8), np.array(policy.fill, np.uint8), code)
        self._scratch = self.new_scratch(1, size, size)

    def new_output(self, batch: int) -> np.ndarray:
        """Return an uninitialised (batch, size, size, 3) array in the dtype's storage type."""
        return np.empty((batch, self.size, self.size, 3), self.storage)

    def new_scratch(self, threads: int, height: int, width: int) -> np.ndarray:
        """Return scratch, (threads, bytes) uint8, that suffices for crops, and so for images, up to height x width."""
        return np.empty((threads, image_scratch_size(height, width, self.size)), np.uint8)

    def __call__(
        self, packed: np.ndarray, offsets: np.ndarray, plan: np.ndarray, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Augment a batch.

        Args:
            packed: uint8, all regions' pixels.
            offsets: (B,) int64, where each region begins. resize.source_regions gives the regions.

        Raises:
            UserError: the packed pixels do not cover a region. The message names the sample.
        """
        out = self.new_output(len(plan)) if out is None else out
        status = np.zeros(len(plan), np.int32)
        scratch = self._scratch_for(plan)
        arguments = packed, offsets, plan, self.finish, scratch, out.view(np.uint8), status
        run_in_threads(_augment_rows, len(scratch), *arguments)
        for b in np.flatnonzero(status)[:1]:
            raise UserError(f"sample {plan['sample'][b]}: {REASONS[status[b]]}")
        return out

    def _scratch_for(self, plan: np.ndarray) -> np.ndarray:
        threads = usable_cpus()
        height, width = (int(n) for n in plan["crop"][:, 2:].max(0, initial=1))
        needed = int(image_scratch_size(height, width, self.size))
        if len(self._scratch) < threads or self._scratch.shape[1] < needed:
            self._scratch = self.new_scratch(threads, height, width)
        return self._scratch
