"""Re-cut a Huffman-coded scan at new restart boundaries without touching a coefficient (ITU T.81, annex F).

Only DC terms depend on what was decoded before: they are coded as the difference to the previous block of
the same component, and restart markers reset that. So the scan is parsed, every bit is copied as it is, and
a DC term is coded anew only where its predictor changes: at the first MCU behind an old or a new restart
marker.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from beton_tools.jpeg.huffman import (
    END_OF_BLOCK,
    FAST_BITS,
    MAX_CODE,
    MAX_TERM,
    step_of,
    symbol_at,
)
from beton_tools.jpeg.markers import DAMAGED, EOI, OK, RST0
from beton_tools.jpeg.memory import load_big_endian

_MAX_DC_SIZE = 11  # bits of a DC difference of 8-bit samples, T.81 table F.1
SPARE_BYTES = 64 * MAX_TERM // 8 + 16  # the longest block and a peek behind it
MAX_BLOCKS = 10  # in an MCU, T.81 B.2.3
_MAX_COMPONENTS = 4


class Writer(NamedTuple):
    """State of the bit writer: bytes written, and bits that do not fill a byte yet."""

    at: int
    bits: np.uint64
    left: int


@njit(cache=True, nogil=True)
def unstuff(src: np.ndarray, at: int, clean: np.ndarray, starts: np.ndarray) -> tuple[int, int]:
    """Copy the scan from src[at:] to `clean` without stuffed zeros and markers, up to the EOI marker.

    starts[k] becomes the offset in `clean` of restart segment k, and starts[segments] the end. Returns (code,
    segments). `clean` must hold src.size - at bytes, starts the expected number of segments plus one.
    """
    n, segment = 0, 0
    starts[0] = 0
    while at + 1 < src.size:
        byte = src[at]
        if byte != 0xFF:
            clean[n] = byte
            n, at = n + 1, at + 1
            continue
        marker = src[at + 1]
        if marker == 0:
            clean[n] = byte
            n, at = n + 1, at + 2
        elif marker == 0xFF:  # fill byte
            at += 1
        elif marker == EOI:
            starts[segment + 1] = n
            return OK, segment + 1
        elif marker == RST0 + (segment & 7) and segment + 2 < starts.size:
            segment += 1
            starts[segment] = n
            at += 2
        else:
            return DAMAGED, 0
    return DAMAGED, 0


@njit(cache=True, nogil=True)
def _peek(clean: np.ndarray, bit: int) -> np.uint64:
    """64 bits of the stream with the bit at `bit` on top; the lowest 7 may be missing."""
    return load_big_endian(clean, bit >> 3) << np.uint64(bit & 7)


@njit(cache=True, nogil=True)
def _put(out: np.ndarray, w: Writer, value: np.uint64, count: int) -> Writer:
    """Append the lowest `count` <= 32 bits of `value`, with a zero byte stuffed behind every FF."""
    bits = (w.bits << np.uint64(count)) | value
    at, left = w.at, w.left + count
    while left >= 8:
        left -= 8
        byte = (bits >> np.uint64(left)) & np.uint64(255)
        out[at] = byte
        at += 1
        if byte == 255:
            out[at] = 0
            at += 1
    return Writer(at, bits, left)


@njit(cache=True, nogil=True)
def _copy(out: np.ndarray, w: Writer, clean: np.ndarray, bit: int, end: int) -> Writer:
    """Append the bits [bit, end) of the stream."""
    while end - bit >= 32:
        w = _put(out, w, _peek(clean, bit) >> np.uint64(32), 32)
        bit += 32
    if end > bit:
        w = _put(out, w, _peek(clean, bit) >> np.uint64(64 - (end - bit)), end - bit)
    return w


@njit(cache=True, nogil=True)
def _finish_segment(out: np.ndarray, w: Writer, marker: int) -> Writer:
    """Fill the last byte with ones (T.81 F.1.2.3) and append a marker."""
    if w.left > 0:
        pad = 8 - w.left
        w = _put(out, w, np.uint64((1 << pad) - 1), pad)
    out[w.at], out[w.at + 1] = 0xFF, marker
    return Writer(w.at + 2, np.uint64(0), 0)


@njit(cache=True, nogil=True)
def _put_dc(out: np.ndarray, w: Writer, table: np.void, difference: int, missing: np.ndarray) -> Writer:
    """Append a DC difference; a size that the table has no code for is noted in `missing` instead."""
    magnitude, size = abs(difference), 0
    while magnitude >> size:
        size += 1
    if table["size"][size] == 0:
        missing[size] = True
        return w
    w = _put(out, w, np.uint64(table["code"][size]), table["size"][size])
    if difference < 0:
        difference += (1 << size) - 1
    return _put(out, w, np.uint64(difference), size)


@njit(cache=True, nogil=True)
def _read_dc(clean: np.ndarray, bit: int, table: np.void) -> tuple[int, int]:
    """(the bit behind a DC term, its difference); (-1, 0) when it is broken."""
    word = _peek(clean, bit)
    entry = symbol_at(table, word)
    length, size = entry >> 8, entry & 255
    if entry == 0 or size > _MAX_DC_SIZE:
        return -1, 0
    if size == 0:
        return bit + length, 0
    difference = np.int64((word << np.uint64(length)) >> np.uint64(64 - size))
    if difference < 1 << (size - 1):
        difference -= (1 << size) - 1
    return bit + length + size, difference


@njit(cache=True, nogil=True)
def _skip_ac(clean: np.ndarray, bit: int, table: np.void) -> int:
    """The bit behind the AC terms of a block; -1 when they are broken."""
    k, word, left = 1, np.uint64(0), 0
    while k < 64:
        if left < MAX_TERM:
            word, left = _peek(clean, bit), 57
        step = np.int64(table["steps"][word >> np.uint64(64 - FAST_BITS)])
        if step == 0:
            step = step_of(symbol_at(table, word))
            if step == 0:
                return -1
        bits = step >> 8
        word <<= np.uint64(bits)
        left -= bits
        bit += bits
        k += step & 255
    return bit if k == 64 or k > END_OF_BLOCK else -1


@njit(cache=True, nogil=True)
def recut(
    clean: np.ndarray,  # u8, from unstuff, with SPARE_BYTES behind the end
    starts: np.ndarray,  # i64, from unstuff
    old_interval: int,  # MCUs
    new_interval: int,
    mcus: int,
    blocks: np.ndarray,  # (blocks in an MCU, 3) i64: component, DC table, AC table (both 0-7)
    tables: np.ndarray,  # (TABLES,) TABLE
    out: np.ndarray,  # u8, room for out_capacity bytes
    ends: np.ndarray,  # i64, one per new segment: gets the offset in `out` of the marker behind it
    missing: np.ndarray,  # (TABLES, 16) bool: gets the DC sizes that a table lacks
) -> int:
    """Write the scan to `out` with a marker behind every `new_interval` MCUs; OK or DAMAGED."""
    old_dc, new_dc = np.zeros(_MAX_COMPONENTS, np.int64), np.zeros(_MAX_COMPONENTS, np.int64)
    w = Writer(0, np.uint64(0), 0)
    bit = copied = end = 0  # positions in the stream, in bits; everything before `copied` is written
    for mcu in range(mcus):
        if mcu % old_interval == 0:
            w = _copy(out, w, clean, copied, bit)
            segment = mcu // old_interval
            bit = copied = 8 * starts[segment]
            end = 8 * starts[segment + 1]
            old_dc[:] = 0
        if mcu % new_interval == 0 and mcu > 0:
            w = _copy(out, w, clean, copied, bit)
            copied = bit
            segment = mcu // new_interval - 1
            w = _finish_segment(out, w, RST0 + (segment & 7))
            ends[segment] = w.at - 2
            new_dc[:] = 0
        for b in range(blocks.shape[0]):
            component, dc_table, ac_table = blocks[b, 0], blocks[b, 1], blocks[b, 2]
            coded, difference = _read_dc(clean, bit, tables[dc_table])
            if coded < 0:
                return DAMAGED
            dc = old_dc[component] + difference
            if old_dc[component] != new_dc[component]:
                if abs(dc - new_dc[component]) >= 1 << _MAX_DC_SIZE:
                    return DAMAGED
                w = _copy(out, w, clean, copied, bit)
                w = _put_dc(out, w, tables[dc_table], dc - new_dc[component], missing[dc_table])
                copied = coded
            old_dc[component] = new_dc[component] = dc
            bit = _skip_ac(clean, coded, tables[ac_table])
            if bit < 0 or bit > end:
                return DAMAGED
    w = _copy(out, w, clean, copied, bit)
    w = _finish_segment(out, w, EOI)
    ends[-1] = w.at - 2
    return OK


def out_capacity(clean_bytes: int, segments: int) -> int:
    """Bytes that `recut` can write at most: every byte stuffed, a re-coded MCU and a marker per segment."""
    dc_bytes = (MAX_CODE + _MAX_DC_SIZE) // 8 + 1
    return 2 * (clean_bytes + segments * (MAX_BLOCKS * dc_bytes + 1)) + 2 * segments + 16
