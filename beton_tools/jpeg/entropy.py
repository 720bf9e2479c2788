"""Code a scan anew with other restart boundaries and Huffman tables, without touching a coefficient (ITU T.81, annex F).

A scan is a sequence of terms. A term is a symbol, which a Huffman table codes, and a value's bits. AC terms stay as they are
and get the new table's codes. A DC term is the difference to the previous block in the same component, and a restart marker
resets that predictor to zero, so differences change at the old and the new markers.
"""

from __future__ import annotations

import numpy as np

from beton_tools.base.jit import njit
from beton_tools.jpeg.huffman import BLOCK, MAX_TERM, symbol_at
from beton_tools.jpeg.markers import DAMAGED, EOI, OK, RST0
from beton_tools.jpeg.memory import load_big_endian, store_big_endian

_MAX_DC_SIZE = 11  # bits in a DC difference for 8-bit samples, T.81 table F.1
SPARE_BYTES = BLOCK * MAX_TERM // 8 + 16  # the longest block and a peek after it
_PEEK_BITS = 57  # valid bits in a peek, at least
_PADDING = 8  # bits. A segment is padded to a whole byte with fewer bits than this
MAX_BLOCKS = 10  # in an MCU, T.81 B.2.3
_MAX_COMPONENTS = 4
_SIXTEEN_ZEROS = 0xF0  # the one AC symbol without a value that does not end a block


@njit(nogil=True)
def _has_ff(word: np.uint64) -> bool:
    """Return True if one of the eight bytes is FF.

    This is the test for a zero byte, applied to the word's complement.
    """
    return word & (~word - np.uint64(0x0101010101010101)) & np.uint64(0x8080808080808080) != 0


@njit(nogil=True)
def unstuff(src: np.ndarray, at: int, clean: np.ndarray, starts: np.ndarray) -> tuple[int, int]:
    """Copy the scan from src[at:] to `clean` without stuffed zeros and markers, up to the EOI marker.

    starts[k] becomes the offset in `clean` where restart segment k begins, and starts[segments] the end. `clean` must have
    src.size - at bytes, and `starts` one entry more than the expected segments. Returns (code, segments).
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
def _read_ac(
    clean: np.ndarray, bit: int, number: int, table: np.void, terms: np.ndarray, counts: np.ndarray, n: int
) -> tuple[int, int]:
    """Append a block's AC terms to the first `n` terms, and count them. number: the table's number.

    Returns (position after them, number of terms), or (-1, 0) if they are damaged.
    """
    k, word, passed = 1, _peek(clean, bit), 0  # passed: bits from the peek that are no longer in `word`
    while k < BLOCK:
        if passed > _PEEK_BITS - MAX_TERM:
            bit += passed
            word, passed = _peek(clean, bit), 0
        entry = symbol_at(table, word)
        if entry == 0:
            return -1, 0
        length, symbol = entry >> 8, entry & 255
        size = symbol & 15
        word <<= np.uint64(length)
        value = (word >> np.uint64(1)) >> np.uint64(63 - size)  # two shifts, because the size can be 0
        word <<= np.uint64(size)
        passed += length + size
        row = (number << 8) | symbol
        counts[row] += 1
        terms[n] = (row << 16) | np.int64(value)
        n += 1
        if size == 0 and symbol != _SIXTEEN_ZEROS:  # end of block
            break
        k += (symbol >> 4) + 1
    return (bit + passed, n) if k <= BLOCK else (-1, 0)


@njit(nogil=True)
def read_terms(
    clean: np.ndarray,  # u8, from unstuff, with SPARE_BYTES after the end
    starts: np.ndarray,  # i64, from unstuff
    old_interval: int,  # MCUs
    new_interval: int,
    mcus: int,
    blocks: np.ndarray,  # (blocks in an MCU, 3) i64: component, DC table, AC table (both 0-7)
    tables: np.ndarray,  # (TABLES,) TABLE
    terms: np.ndarray,  # u32 (term_capacity,): table << 24 | symbol << 16 | value, as they are to be written
    counts: np.ndarray,  # (TABLES * SYMBOLS,) i64: how often each symbol is to be written is added here
    ends: np.ndarray,  # i64, one per new segment: set to the number of terms up to its end
) -> int:
    """Decode the scan into terms, for a restart marker after every `new_interval` MCUs. Returns OK or DAMAGED."""
    old_dc, new_dc = np.zeros(_MAX_COMPONENTS, np.int64), np.zeros(_MAX_COMPONENTS, np.int64)
    n = bit = end = 0  # the number of terms, the position in the stream, and where its segment ends
    for mcu in range(mcus):
        if mcu % old_interval == 0:
            bit, end = 8 * starts[mcu // old_interval], 8 * starts[mcu // old_interval + 1]
            old_dc[:] = 0
        if mcu % new_interval == 0:
            new_dc[:] = 0
        for b in range(blocks.shape[0]):
            component, dc_table, ac_table = blocks[b, 0], blocks[b, 1], blocks[b, 2]
            bit, difference = _read_dc(clean, bit, tables[dc_table])
            if bit < 0:
                return DAMAGED
            old_dc[component] += difference
            difference = old_dc[component] - new_dc[component]
            new_dc[component] = old_dc[component]
            size = _bits_in(abs(difference))
            if size > _MAX_DC_SIZE:
                return DAMAGED
            row = (dc_table << 8) | size
            counts[row] += 1
            terms[n] = (row << 16) | (difference if difference >= 0 else difference + (1 << size) - 1)
            n += 1
            bit, n = _read_ac(clean, bit, ac_table, tables[ac_table], terms, counts, n)
            if bit < 0 or bit > end:
                return DAMAGED
        ends_old = (mcu + 1) % old_interval == 0 or mcu + 1 == mcus
        if ends_old and end - bit >= _PADDING:
            return DAMAGED  # code words are left over, so damaged ones before them were misread
        if (mcu + 1) % new_interval == 0:
            ends[mcu // new_interval] = n
    return OK


@njit(nogil=True)
def _bits_in(magnitude: int) -> int:
    size = 0
    while magnitude >> size:
        size += 1
    return size


@njit(nogil=True)
def write_terms(
    terms: np.ndarray,  # u32, from read_terms
    codes: np.ndarray,  # (TABLES * SYMBOLS,) u64, from huffman.codes_of
    out: np.ndarray,  # u8, out_capacity bytes
    ends: np.ndarray,  # i64, from read_terms: set to the offset in `out` where the marker after each segment begins
) -> None:
    """Write the scan, with restart markers and an EOI marker."""
    n = at = 0
    for segment in range(ends.size):
        bits, left = np.uint64(0), 0  # the last `left` bits, at most 64, are not written yet
        for term in terms[n : ends[segment]]:
            code = codes[term >> np.uint32(16)]
            count = np.int64(code & np.uint64(255))
            if left + count > 64:
                at = _write_bytes(out, at, bits, left)
                left &= 7
            bits = (bits << np.uint64(count)) | (code >> np.uint64(8)) | np.uint64(term & np.uint32(0xFFFF))
            left += count
        n = ends[segment]
        at = _write_bytes(out, at, bits, left)
        left &= 7
        if left > 0:  # fill the last byte with ones, T.81 F.1.2.3
            pad = 8 - left
            at = _write_bytes(out, at, (bits << np.uint64(pad)) | np.uint64((1 << pad) - 1), 8)
        ends[segment] = at
        out[at], out[at + 1] = 0xFF, EOI if segment + 1 == ends.size else RST0 + (segment & 7)
        at += 2


@njit(nogil=True)
def _write_bytes(out: np.ndarray, at: int, bits: np.uint64, left: int) -> int:
    """Write the complete bytes in the last `left` > 0 bits, with a zero after every FF. Returns the offset after them.

    Up to 8 bytes after the last one are overwritten.
    """
    word = bits << np.uint64(64 - left)  # an incomplete last byte contains a zero bit, so it is not FF
    if _has_ff(word):
        return _store_stuffed(out, at, word, left >> 3)
    store_big_endian(out, at, word)
    return at + (left >> 3)


def term_capacity(clean_bytes: int, blocks: int) -> int:
    """Return the most terms that `read_terms` can write: each has a bit, and a block is checked after its last term."""
    return BLOCK * min(clean_bytes // (BLOCK // 8) + 2, blocks)


def out_capacity(counts: np.ndarray, codes: np.ndarray, segments: int) -> int:
    """Return the most bytes that `write_terms` can write: every byte stuffed, padding and a marker after each segment."""
    bits = int(counts @ (codes & np.uint64(255)).astype(np.int64))
    return 2 * (bits // 8 + 1 + segments) + 2 * segments + 16
