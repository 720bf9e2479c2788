"""Decode only what the plans of a batch touch: one njit call a batch, its images shared out among threads.

One thread per element of `decoders` and row of scratch (see `beton_tools.jpeg.crop`). Images differ in cost,
so each thread takes the next one when it is done, instead of a fixed share. The loops are long on purpose:
Numba optimises everything that a function calls anew with it: a level of functions costs seconds to compile.
"""

import os
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.extending import intrinsic

from beton_tools.format import RAW_MODE, Beton
from beton_tools.jpeg.crop import decode_region
from beton_tools.jpeg.markers import BAD_REGION, OK, OTHER_SIZE, scan_header
from beton_tools.jpeg.memory import copy_bytes
from fastft.augment.cpu import Finish, augment_image
from fastft.data.clock import AUGMENT, CPU, DECODE, READ, WALL, fault_in, now

if (
    "NUMBA_THREADING_LAYER" not in os.environ
):  # two loaders may be at work at once, which "workqueue" answers with abort()
    numba.config.THREADING_LAYER = "threadsafe"

CHANNELS = 3


class Stored(NamedTuple):
    """Where the images of a batch lie in the file and what they are; arrays (B,)."""

    start: np.ndarray  # int64, byte offset in the file
    num_bytes: np.ndarray  # int64
    height: np.ndarray  # int64
    width: np.ndarray  # int64
    mode: np.ndarray  # uint8, JPEG_MODE or RAW_MODE


def look_up(beton: Beton, ids: np.ndarray) -> Stored:
    """The `Stored` of a batch of sample ids."""
    rows = beton.image_column[ids]
    height, width = rows["height"].astype(np.int64), rows["width"].astype(np.int64)
    return Stored(beton.pointers[ids], beton.sizes[ids], height, width, rows["mode"].copy())


@intrinsic
def _take_ticket(typing_context: Any, counter: Any) -> Any:
    """`counter[0]` (int64) before it is raised by one, atomically."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        return builder.atomic_rmw("add", array.data, ir.Constant(ir.IntType(64), 1), "seq_cst")

    return types.int64(counter), codegen


@njit(cache=True, nogil=True)
def decode_stored(
    data: np.ndarray,
    stored: Stored,
    b: int,
    region: np.ndarray,
    out: np.ndarray,
    scratch: np.ndarray,
    decoder: int,
) -> int:
    """Write `region` (y, x, h, w) of the batch's image b to `out` as packed RGB; 0 or an error code."""
    y, x, h, w = region[0], region[1], region[2], region[3]
    source = data[stored.start[b] : stored.start[b] + stored.num_bytes[b]]
    height, width = stored.height[b], stored.width[b]
    if stored.mode[b] != RAW_MODE:
        head = scan_header(source)
        if head.code == OK and (head.height != height or head.width != width):
            return OTHER_SIZE
        return decode_region(source, y, x, h, w, out, scratch, decoder)
    if y < 0 or x < 0 or h < 1 or w < 1 or y + h > height or x + w > width:
        return BAD_REGION
    if out.size < CHANNELS * h * w or source.size < CHANNELS * height * width:
        return BAD_REGION
    for row in range(h):
        copy_bytes(out, CHANNELS * w * row, source, CHANNELS * ((y + row) * width + x), CHANNELS * w)
    return OK


@njit(cache=True, nogil=True)
def _read(data: np.ndarray, stored: Stored, b: int, spent: np.ndarray, room: np.ndarray) -> None:
    """Wait for the image's pages. Of a raw image only the region is read, while it is copied."""
    if stored.mode[b] == RAW_MODE:
        return
    begun = now(WALL, room)
    room[0] = fault_in(data[stored.start[b] : stored.start[b] + stored.num_bytes[b]])
    spent[READ] += now(WALL, room) - begun


@njit(cache=True, nogil=True, parallel=True)
def decode_packed(
    data: np.ndarray,
    stored: Stored,
    regions: np.ndarray,
    offsets: np.ndarray,
    packed: np.ndarray,
    scratch: np.ndarray,
    decoders: np.ndarray,
    codes: np.ndarray,
    spent: np.ndarray,
) -> None:
    """Decode `regions` (B, 4) into `packed[offsets[b] : offsets[b + 1]]`; codes (B,): 0, or the decoder's.

    spent (threads, 3): nanoseconds are added to it, see WorkClock.
    """
    ticket = np.zeros(1, np.int64)
    for thread in prange(len(decoders)):
        room = np.empty(2, np.int64)
        b: int = _take_ticket(ticket)
        while b < len(regions):
            _read(data, stored, b, spent[thread], room)
            begun = now(CPU, room)
            out = packed[offsets[b] : offsets[b + 1]]
            codes[b] = decode_stored(data, stored, b, regions[b], out, scratch[thread], decoders[thread])
            spent[thread, DECODE] += now(CPU, room) - begun
            b = _take_ticket(ticket)


class Room(NamedTuple):
    """Scratch for decoding and augmenting; uint8 (threads, bytes)."""

    decode: np.ndarray
    pixels: np.ndarray  # of the decoded region
    augment: np.ndarray


@njit(cache=True, nogil=True, parallel=True)
def decode_and_augment(
    data: np.ndarray,
    stored: Stored,
    regions: np.ndarray,
    plan: np.ndarray,
    finish: Finish,
    room: Room,
    decoders: np.ndarray,
    out: np.ndarray,
    codes: np.ndarray,
    spent: np.ndarray,
) -> None:
    """Carry out `plan` (B,) to `out` (B, S, S, 3), each image while its pixels are in cache.

    codes (B,): 0, the decoder's error code, or minus the status of `augment_image`. spent as in `decode_packed`.
    """
    ticket = np.zeros(1, np.int64)
    for thread in prange(len(decoders)):
        times = np.empty(2, np.int64)
        b: int = _take_ticket(ticket)
        while b < len(plan):
            _read(data, stored, b, spent[thread], times)
            begun = now(CPU, times)
            y, x, h, w = regions[b]
            pixels = room.pixels[thread, : CHANNELS * h * w]
            codes[b] = decode_stored(
                data, stored, b, regions[b], pixels, room.decode[thread], decoders[thread]
            )
            decoded = now(CPU, times)
            spent[thread, DECODE] += decoded - begun
            if codes[b] == OK:
                codes[b] = -augment_image(
                    pixels, CHANNELS * w, (y, x, h, w), plan[b], finish, room.augment[thread], out[b]
                )
                spent[thread, AUGMENT] += now(CPU, times) - decoded
            b = _take_ticket(ticket)
