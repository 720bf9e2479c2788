"""Re-cut a Huffman-coded scan at new restart boundaries without touching a coefficient (ITU T.81, annex F).

Only DC terms depend on earlier blocks: each is coded as the difference to the previous block in the same component, and
a restart marker resets that predictor to zero. So the scan is parsed, its bits are copied unchanged, and a DC term is
re-coded only where its predictor changes: in the first MCU after an old or a new restart marker. AC terms are only
skipped: one table look-up skips all terms that end within 12 bits.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from beton_tools.base.jit import njit
from beton_tools.jpeg.huffman import BLOCK, END_OF_BLOCK, LEAP_BITS, MAX_CODE, MAX_TERM, step_of, symbol_at
from beton_tools.jpeg.markers import DAMAGED, EOI, OK, RST0
from beton_tools.jpeg.memory import load_big_endian, store_big_endian

_MAX_DC_SIZE = 11  # bits in a DC difference for 8-bit samples, T.81 table F.1
_PEEK_BITS = 57  # valid bits in a peek, at least
_STRIDE = 56  # bits copied at once: together with the bits of an incomplete byte they fit a word
_LEAPS = _PEEK_BITS // LEAP_BITS
SPARE_BYTES = BLOCK * MAX_TERM // 8 + 16  # the longest block and a peek after it
_PADDING = 8  # bits; a segment is padded to a whole byte with fewer than these
MAX_BLOCKS = 10  # in an MCU, T.81 B.2.3
_MAX_COMPONENTS = 4


class Writer(NamedTuple):
    """The bit writer's state: number of bytes written, and the `left` bits that do not fill a byte yet."""

    at: int
    bits: np.uint64
    left: int


@njit(nogil=True)
def _has_ff(word: np.uint64) -> bool:
    """Return True if one of the eight bytes is FF.

    This is the test for a zero byte, applied to the word's complement.
    """
    return word & (~word - np.uint64(0x0101010101010101)) & np.uint64(0x8080808080808080) != 0


@njit(nogil=True)
def unstuff(src: np.ndarray, at: int, clean: np.ndarray, starts: np.ndarray) -> tuple[int, int]:
    """Copy the scan from src[at:] to `clean` without stuffed zeros and markers, up to the EOI marker.

    starts[k] becomes the offset of restart segment k in `clean`, and starts[segments] the end. `clean` must have
    src.size - at bytes, and `starts` the expected number of segments plus one. Returns (code, segments).
    """
    n, segment = 0, 0
    starts[0] = 0
    while at + 1 < src.size:
        if at + 8 <= src.size:
            word = load_big_endian(src, at)
            if not _has_ff(word):
                store_big_endian(clean, n, word)
                n, at = n + 8, at + 8
                continue
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


@njit(nogil=True)
def _peek(clean: np.ndarray, bit: int) -> np.uint64:
    """Return 64 bits from the stream, with the bit at position `bit` first. The lowest 7 bits may be missing."""
    return load_big_endian(clean, bit >> 3) << np.uint64(bit & 7)


@njit(nogil=True)
def _put(out: np.ndarray, w: Writer, value: np.uint64, count: int) -> Writer:
    """Append the lowest 0 < `count` <= _STRIDE bits of `value`, with a zero byte stuffed after every FF.

    Up to 8 bytes after the last complete one are overwritten.
    """
    left = w.left + count
    bits = (w.bits << np.uint64(count)) | value
    word = bits << np.uint64(64 - left)  # the incomplete last byte contains a zero bit, so it is not FF
    at = w.at + (left >> 3)
    if _has_ff(word):
        at = _store_stuffed(out, w.at, word, left >> 3)
    else:
        store_big_endian(out, w.at, word)
    left &= 7
    return Writer(at, bits & np.uint64((1 << left) - 1), left)


@njit(nogil=True)
def _store_stuffed(out: np.ndarray, at: int, word: np.uint64, count: int) -> int:
    """Write the first `count` bytes of `word`, with a zero after every FF. Returns the offset after them."""
    for i in range(count):
        byte = (word >> np.uint64(56 - 8 * i)) & np.uint64(255)
        out[at] = byte
        at += 1
        if byte == 255:
            out[at] = 0
            at += 1
    return at


@njit(nogil=True)
def _copy(out: np.ndarray, w: Writer, clean: np.ndarray, bit: int, end: int) -> Writer:
    """Append the bits [bit, end) of the stream."""
    count = min(end - bit, _STRIDE - w.left)  # up to a whole byte
    if count > 0:
        w = _put(out, w, _peek(clean, bit) >> np.uint64(64 - count), count)
        bit += count
    if end - bit >= _STRIDE:
        at = w.at
        while end - bit >= _STRIDE:
            word = _peek(clean, bit) & ~np.uint64(255)
            if _has_ff(word):
                at = _store_stuffed(out, at, word, _STRIDE // 8)
            else:
                store_big_endian(out, at, word)
                at += _STRIDE // 8
            bit += _STRIDE
        w = Writer(at, np.uint64(0), 0)
    if end > bit:
        w = _put(out, w, _peek(clean, bit) >> np.uint64(64 - (end - bit)), end - bit)
    return w


@njit(nogil=True)
def _finish_segment(out: np.ndarray, w: Writer, marker: int) -> Writer:
    """Fill the last byte with ones (T.81 F.1.2.3) and append a marker."""
    if w.left > 0:
        pad = 8 - w.left
        w = _put(out, w, np.uint64((1 << pad) - 1), pad)
    out[w.at], out[w.at + 1] = 0xFF, marker
    return Writer(w.at + 2, np.uint64(0), 0)


@njit(nogil=True)
def _put_dc(out: np.ndarray, w: Writer, table: np.void, difference: int) -> Writer:
    """Append a DC difference. If the table has no code for its size, record the size as missing instead."""
    magnitude, size = abs(difference), 0
    while magnitude >> size:
        size += 1
    length = np.int64(table["size"][size])
    if length == 0:
        table["missing"][size] = 1
        return w
    if difference < 0:
        difference += (1 << size) - 1
    code = np.int64(table["code"][size])
    return _put(out, w, np.uint64((code << size) | difference), length + size)


@njit(nogil=True)
def _read_dc(clean: np.ndarray, bit: int, table: np.void) -> tuple[int, int]:
    """Read a DC term. Returns (position after it, difference), or (-1, 0) if it is damaged."""
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


@njit(nogil=True)
def _at_end(k: int) -> bool:
    """Return True if a block ends before coefficient k: all 64 were coded, or an end-of-block symbol was read."""
    return k == BLOCK or END_OF_BLOCK < k < END_OF_BLOCK + BLOCK


@njit(nogil=True)
def _skip_ac(clean: np.ndarray, bit: int, table: np.void) -> int:
    """Return the position after a block's AC terms, or -1 if they are damaged."""
    k = 1  # coefficients skipped so far; `passed` packs them with the bits since the peek, as table["leaps"] does
    while True:
        word, leap, passed = _peek(clean, bit), 0, k << 8
        for _ in range(_LEAPS):
            leap = np.int64(table["leaps"][(1 << LEAP_BITS) + np.int64(word >> np.uint64(64 - LEAP_BITS))])
            passed += leap
            if passed >= BLOCK << 8:
                break
            word <<= np.uint64(leap & 63)
        # a long term, or a leap beyond the end of the block
        if passed >= BLOCK << 8 and not _at_end(passed >> 8):
            step = step_of(symbol_at(table, word))
            if step == 0:
                return -1
            passed += step - leap
        k = passed >> 8
        bit += passed & 255
        if k >= BLOCK:
            return bit if _at_end(k) else -1


@njit(nogil=True)
def _pass_mcus(
    clean: np.ndarray, bit: int, end: int, mcus: int, blocks: np.ndarray, tables: np.ndarray, dc: np.ndarray
) -> int:
    """Return the position after `mcus` MCUs, or -1 if they are damaged or end after `end`.

    Their DC differences are added to `dc`.
    """
    for _ in range(mcus):
        for b in range(blocks.shape[0]):
            bit, difference = _read_dc(clean, bit, tables[blocks[b, 1]])
            if bit < 0:
                return -1
            dc[blocks[b, 0]] += difference
            bit = _skip_ac(clean, bit, tables[blocks[b, 2]])
            if bit < 0 or bit > end:
                return -1
    return bit


@njit(nogil=True)
def _recode_mcu(
    out: np.ndarray,
    w: Writer,
    clean: np.ndarray,
    bit: int,
    end: int,
    blocks: np.ndarray,
    tables: np.ndarray,
    old_dc: np.ndarray,
    new_dc: np.ndarray,
) -> tuple[Writer, int]:
    """Append an MCU with its DC terms coded relative to new_dc instead of old_dc. Both are set to its DC values.

    Returns the writer and the position after the MCU, which is -1 if it is damaged or ends after `end`.
    """
    for b in range(blocks.shape[0]):
        component, dc_table = blocks[b, 0], blocks[b, 1]
        coded, difference = _read_dc(clean, bit, tables[dc_table])
        if coded < 0:
            return w, -1
        dc = old_dc[component] + difference
        if old_dc[component] != new_dc[component]:
            difference = dc - new_dc[component]
            if abs(difference) >= 1 << _MAX_DC_SIZE:
                return w, -1
            w = _put_dc(out, w, tables[dc_table], difference)
            bit = coded
        old_dc[component] = new_dc[component] = dc
        after = _skip_ac(clean, coded, tables[blocks[b, 2]])
        if after < 0 or after > end:
            return w, -1
        w = _copy(out, w, clean, bit, after)
        bit = after
    return w, bit


@njit(nogil=True)
def recut(
    clean: np.ndarray,  # u8, from unstuff, with SPARE_BYTES after the end
    starts: np.ndarray,  # i64, from unstuff
    old_interval: int,  # MCUs
    new_interval: int,
    mcus: int,
    blocks: np.ndarray,  # (blocks in an MCU, 3) i64: component, DC table, AC table (both 0-7)
    tables: np.ndarray,  # (TABLES,) TABLE; DC sizes without a code are marked in "missing"
    out: np.ndarray,  # u8, out_capacity bytes
    ends: np.ndarray,  # i64, one per new segment: set to the offset in `out` of the marker after it
) -> int:
    """Write the scan to `out` with a marker after every `new_interval` MCUs. Returns OK or DAMAGED."""
    old_dc, new_dc = np.zeros(_MAX_COMPONENTS, np.int64), np.zeros(_MAX_COMPONENTS, np.int64)
    w = Writer(0, np.uint64(0), 0)
    mcu = bit = end = 0  # bit: position in the stream
    while mcu < mcus:
        old_segment, new_segment = mcu // old_interval, mcu // new_interval
        if mcu == old_segment * old_interval:
            bit, end = 8 * starts[old_segment], 8 * starts[old_segment + 1]
            old_dc[:] = 0
        if mcu == new_segment * new_interval:
            if mcu > 0:
                w = _finish_segment(out, w, RST0 + ((new_segment - 1) & 7))
                ends[new_segment - 1] = w.at - 2
            new_dc[:] = 0
        w, begin = _recode_mcu(out, w, clean, bit, end, blocks, tables, old_dc, new_dc)
        if begin < 0:
            return DAMAGED
        following = min((old_segment + 1) * old_interval, (new_segment + 1) * new_interval, mcus)
        bit = _pass_mcus(clean, begin, end, following - mcu - 1, blocks, tables, old_dc)
        if bit < 0:
            return DAMAGED
        if following in ((old_segment + 1) * old_interval, mcus) and end - bit >= _PADDING:
            return DAMAGED  # code words are left over, so damaged ones before them were misread
        w = _copy(out, w, clean, begin, bit)
        new_dc[:] = old_dc
        mcu = following
    w = _finish_segment(out, w, np.int64(EOI))
    ends[-1] = w.at - 2
    return OK


def out_capacity(clean_bytes: int, segments: int) -> int:
    """Return the most bytes that `recut` can write: every byte stuffed, and a re-coded MCU and a marker per segment."""
    dc_bytes = (MAX_CODE + _MAX_DC_SIZE) // 8 + 1
    return 2 * (clean_bytes + segments * (MAX_BLOCKS * dc_bytes + 1)) + 2 * segments + 16
