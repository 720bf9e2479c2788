"""A JPEG's Huffman tables: read, derive, extend, write (ITU T.81, annex C and B.2.4.2)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from beton_tools.base.jit import njit
from beton_tools.jpeg.markers import BAD_HEADER, DHT, OK, JpegError, check_code, segment

TABLES = 8  # DC tables 0-3, then AC tables 0-3
AC = 4  # number of the first AC table
MAX_CODE = 16  # bits
MAX_TERM = MAX_CODE + 15  # bits in an AC term: code and value
BLOCK = 64  # coefficients
END_OF_BLOCK = 128  # coefficients that the end-of-block symbol advances: more than a block has
_MAX_DC_SYMBOL = 15  # libjpeg refuses tables with larger ones
FAST_BITS = 10  # codes up to this length are found in one look-up; longer ones are rare
LEAP_BITS = 12  # window for the look-up that passes several AC terms: 8 KiB per table, two fit the L1 cache
UNKNOWN = 192  # coefficients in a leap over no term: a value that no leap inside a block reaches


class Spec(NamedTuple):
    """Tables in the form that DHT segments have."""

    counts: np.ndarray  # (TABLES, 17) u8: number of codes with each length; [:, 0] is unused
    values: np.ndarray  # (TABLES, 256) u8: symbols in the order of their codes


# One table, ready for decoding and coding. It is a record, not a tuple of arrays, because numba updates a reference
# count for each array taken from a tuple, which costs as much as the look-up.
TABLE = np.dtype(
    [
        # length << 8 | symbol of the first code in the window, 0: longer code
        ("fast", np.uint16, 1 << FAST_BITS),
        ("leaps", np.uint16, 2 << LEAP_BITS),  # see _derive_leaps; AC tables only
        ("max_code", np.int32, MAX_CODE + 1),  # largest code for each length, -1: none
        ("delta", np.int32, MAX_CODE + 1),  # code + delta = position in values
        ("values", np.uint8, 256),
        ("code", np.uint16, 256),  # each symbol's code
        ("size", np.uint8, 256),  # its length in bits, 0: the table has no such symbol
        ("missing", np.uint8, 16),  # 1: a DC size that had to be coded, but has no code
    ]
)


def read_tables(payloads: Iterable[bytes]) -> Spec:
    """Read the tables that a header's DHT payloads define. A later definition replaces an earlier one.

    Raises JpegError if a payload is broken.
    """
    spec = Spec(np.zeros((TABLES, 17), np.uint8), np.zeros((TABLES, 256), np.uint8))
    for payload in payloads:
        while payload:
            kind, number = payload[0] >> 4, payload[0] & 15
            total = sum(payload[1:17])
            values = payload[17 : 17 + total]
            is_broken = kind > 1 or number >= AC or total > 256 or len(payload) < 17 + total
            is_broken |= kind == 0 and max(values, default=0) > _MAX_DC_SYMBOL
            check_code(BAD_HEADER if is_broken else OK)
            table = kind * AC + number
            spec.counts[table, 1:] = np.frombuffer(payload, np.uint8, 16, 1)
            spec.values[table] = np.frombuffer(values.ljust(256, b"\0"), np.uint8)
            payload = payload[17 + total :]
    return spec


def write_tables(spec: Spec, used: Iterable[int]) -> bytes:
    """Write one DHT segment that contains the tables `used`."""
    body = b""
    for table in used:
        total = int(spec.counts[table].sum(dtype=np.int64))
        head = bytes([(table // AC) << 4 | table % AC])
        body += head + spec.counts[table, 1:].tobytes() + spec.values[table, :total].tobytes()
    return segment(DHT, body)


def extend_table(spec: Spec, table: int, symbols: np.ndarray) -> None:
    """Append codes for `symbols` to the table, in place, without changing an existing code.

    Codes are free because the code that consists of ones only is never used. With one more bit it gives one new code,
    with two more bits three, and so on.

    Raises:
        JpegError: The new codes would need more than 16 bits. Tables with up to 12 symbols never do, unless constructed
            to.
    """
    counts = spec.counts[table]
    total = int(counts.sum(dtype=np.int64))
    longest = int(np.flatnonzero(counts).max(initial=1))
    used = sum(int(counts[length]) << (longest - length) for length in range(1, longest + 1))
    for length in range(longest, MAX_CODE + 1):
        free = (((1 << longest) - used) << (length - longest)) - 1
        if free >= symbols.size:
            counts[length] += symbols.size
            spec.values[table, total : total + symbols.size] = symbols
            return
    raise JpegError("a Huffman table of this JPEG has no room for a code that the index needs. Re-encode it")


def derive(spec: Spec, used: np.ndarray) -> np.ndarray:
    """Derive decoding tables, (TABLES,) TABLE. Only the tables in `used` are filled.

    Raises JpegError if the code lengths are impossible.
    """
    tables = np.empty(TABLES, TABLE)  # not zeros: memory for unused tables is never written
    check_code(BAD_HEADER if _derive_all(spec.counts, spec.values, used, tables) != OK else OK)
    return tables


@njit(nogil=True)
def _derive_all(counts: np.ndarray, values: np.ndarray, used: np.ndarray, tables: np.ndarray) -> int:
    for number in used:
        if _derive(counts[number], values[number], tables[number]) != OK:
            return BAD_HEADER
        if number >= AC:
            _derive_leaps(counts[number], tables[number])
    return OK


@njit(nogil=True)
def step_of(entry: int) -> int:
    """Return an AC term's size, coefficients << 8 | bits, given length << 8 | symbol. 0 gives 0 (no such code)."""
    if entry == 0:
        return 0
    size, run = entry & 15, (entry >> 4) & 15
    bits = (entry >> 8) + size
    if size > 0 or run == 15:  # run 15 without a value: sixteen zeros
        return ((run + 1) << 8) | bits
    return (END_OF_BLOCK << 8) | bits


@njit(nogil=True)
def _derive(counts: np.ndarray, values: np.ndarray, table: np.void) -> int:
    """Fill `table`, except "leaps", from counts (17,) u8 and values (256,) u8 (T.81 annex C)."""
    table["values"][:] = values
    table["fast"][:] = 0
    table["size"][:] = 0
    table["missing"][:] = 0
    code, position = 0, 0
    for length in range(1, MAX_CODE + 1):
        n = np.int64(counts[length])
        if code + n > (1 << length) - (n > 0) or position + n > 256:  # a code with ones only is not allowed
            return BAD_HEADER
        table["delta"][length] = position - code
        for _ in range(n):
            symbol = table["values"][position]
            table["code"][symbol], table["size"][symbol] = code, length
            if length <= FAST_BITS:
                entry = (length << 8) | np.int64(symbol)
                first, last = code << (FAST_BITS - length), (code + 1) << (FAST_BITS - length)
                table["fast"][first:last] = entry
            code += 1
            position += 1
        table["max_code"][length] = code - 1 if n > 0 else -1
        code <<= 1
    return OK


@njit(nogil=True)
def _derive_leaps(counts: np.ndarray, table: np.void) -> None:
    """Fill table["leaps"]: entry (1 << n) + window is the size of the complete AC terms in a window with n bits.

    The size is coefficients << 8 | bits, as in step_of. A leap stops after an end-of-block symbol. Otherwise it is
    shorter than a block. The first term in a window is followed by a smaller window, whose leap is known.
    """
    leaps = table["leaps"]
    leaps[:] = 0
    for n in range(1, LEAP_BITS + 1):
        code, position = 0, 0
        for length in range(1, n + 1):
            for _ in range(counts[length]):
                step = step_of((length << 8) | np.int64(table["values"][position]))
                first, last = (1 << n) + (code << (n - length)), (1 << n) + ((code + 1) << (n - length))
                _fill_leaps(leaps, first, last, n - (step & 255), step)
                code += 1
                position += 1
            code <<= 1
    for at in range(1 << LEAP_BITS, 2 << LEAP_BITS):
        if leaps[at] == 0:
            leaps[at] = UNKNOWN << 8


@njit(nogil=True)
def _fill_leaps(leaps: np.ndarray, first: int, last: int, rest: int, step: int) -> None:
    """Set entries first to last to a term with size `step` and the leap in the `rest` bits after it."""
    if rest < 0:
        return
    if step >> 8 == END_OF_BLOCK:
        leaps[first:last] = step
        return
    for at in range(first, last, 1 << rest):
        for i in range(1 << rest):
            leap = np.int64(leaps[(1 << rest) + i])
            whole = ((step >> 8) & 127) + ((leap >> 8) & 127) < BLOCK
            leaps[at + i] = step + leap if whole else step


@njit(nogil=True)
def symbol_at(table: np.void, word: np.uint64) -> int:
    """Return length << 8 | symbol for the code that `word` begins with, or 0 if there is no such code."""
    entry = np.int64(table["fast"][word >> np.uint64(64 - FAST_BITS)])
    if entry != 0:
        return entry
    for length in range(FAST_BITS + 1, MAX_CODE + 1):
        code = np.int64(word >> np.uint64(64 - length))
        if code <= table["max_code"][length]:
            return (length << 8) | np.int64(table["values"][code + table["delta"][length]])
    return 0
