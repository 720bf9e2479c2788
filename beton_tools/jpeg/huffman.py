"""A JPEG's Huffman tables: read, derive, fit, write (ITU T.81, annex C, B.2.4.2 and K.2)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from beton_tools.base.jit import njit
from beton_tools.jpeg.markers import BAD_HEADER, DHT, OK, check_code, segment

TABLES = 8  # DC tables 0-3, then AC tables 0-3
AC = 4  # the first AC table's number
MAX_CODE = 16  # bits
MAX_TERM = MAX_CODE + 15  # bits in an AC term: code and value
BLOCK = 64  # coefficients
_MAX_DC_SYMBOL = 15  # libjpeg refuses tables with larger ones
FAST_BITS = 10  # codes up to this length are found in one look-up. Longer ones are rare
SYMBOLS = 256


class Spec(NamedTuple):
    """Tables in the form that DHT segments have."""

    counts: np.ndarray  # (TABLES, 17) u8: number of codes with each length. [:, 0] is unused
    values: np.ndarray  # (TABLES, 256) u8: symbols, ordered by code


# One table, ready for decoding and coding. It is a record, because with a tuple of arrays numba would update a reference
# count for each array it takes from it, which costs as much as the look-up.
TABLE = np.dtype(
    [
        # length << 8 | symbol of the first code in the window, 0: longer code
        ("fast", np.uint16, 1 << FAST_BITS),
        ("max_code", np.int32, MAX_CODE + 1),  # largest code for each length, -1: none
        ("delta", np.int32, MAX_CODE + 1),  # code + delta = position in values
        ("values", np.uint8, SYMBOLS),
        ("code", np.uint16, SYMBOLS),  # each symbol's code
        ("size", np.uint8, SYMBOLS),  # its length in bits, 0: the table has no such symbol
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


def fit(counts: np.ndarray, used: np.ndarray) -> Spec:
    """Return the shortest tables for symbols with these counts, (TABLES, SYMBOLS) i64, as `jpegtran -optimize` makes them.

    Only the tables in `used` are filled.
    """
    spec = Spec(np.zeros((TABLES, 17), np.uint8), np.zeros((TABLES, SYMBOLS), np.uint8))
    for table in used:
        _fit(counts[table], spec.counts[table], spec.values[table])
    return spec


def derive(spec: Spec, used: np.ndarray) -> np.ndarray:
    """Derive decoding tables, (TABLES,) TABLE. Only the tables in `used` are filled.

    Raises JpegError if the code lengths are impossible.
    """
    tables = np.empty(TABLES, TABLE)  # not zeros: memory for unused tables is never written
    check_code(BAD_HEADER if _derive_all(spec.counts, spec.values, used, tables) != OK else OK)
    return tables


def codes_of(tables: np.ndarray) -> np.ndarray:
    """Return the bits to write for each symbol, (TABLES * SYMBOLS,) u64: code, zeros for the value, and a bit count in 8 bits.

    Tables that `derive` has not filled have undefined codes.
    """
    values = np.arange(SYMBOLS, dtype=np.uint64) & np.uint64(15)  # a value's bits. A DC symbol is at most 11
    terms = tables["code"].astype(np.uint64) << values
    return ((terms << np.uint64(8)) | (tables["size"] + values)).ravel()


@njit(nogil=True)
def _derive_all(counts: np.ndarray, values: np.ndarray, used: np.ndarray, tables: np.ndarray) -> int:
    for number in used:
        if _derive(counts[number], values[number], tables[number]) != OK:
            return BAD_HEADER
    return OK


@njit(nogil=True)
def _derive(counts: np.ndarray, values: np.ndarray, table: np.void) -> int:
    """Fill `table`, from counts (17,) u8 and values (256,) u8 (T.81 annex C)."""
    table["values"][:] = values
    table["fast"][:] = 0
    table["size"][:] = 0
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
def _fit(counts: np.ndarray, lengths: np.ndarray, values: np.ndarray) -> None:
    """Fill lengths (17,) u8, the number of codes with each length, and values from counts (SYMBOLS,) i64 (T.81 K.2).

    One more symbol, which is never coded, takes the code that consists of ones only.
    """
    symbols = np.append(np.flatnonzero(counts), SYMBOLS)
    weights = np.append(counts[symbols[:-1]], 1)
    sizes = np.zeros(symbols.size, np.int64)  # each symbol's code length
    following = np.full(symbols.size, -1)  # the next symbol in the same tree
    for _ in range(symbols.size - 1):
        first = _rarest(weights, -1)
        second = _rarest(weights, first)
        weights[first] += weights[second]
        weights[second] = 0
        last = first
        while following[last] >= 0:
            last = following[last]
        following[last] = second
        while first >= 0:
            sizes[first] += 1
            first = following[first]
    totals = np.zeros(max(symbols.size, MAX_CODE) + 1, np.int64)  # codes by length
    for size in sizes:
        totals[size] += 1
    for length in range(totals.size - 1, MAX_CODE, -1):
        while totals[length] > 0:  # shorten a pair by one bit and lengthen a shorter code by one
            shorter = length - 2
            while totals[shorter] == 0:
                shorter -= 1
            totals[length] -= 2
            totals[length - 1] += 1
            totals[shorter + 1] += 2
            totals[shorter] -= 1
    longest = MAX_CODE
    while totals[longest] == 0:
        longest -= 1
    totals[longest] -= 1  # the additional symbol's
    lengths[:] = totals[: MAX_CODE + 1]
    position = 0
    for length in range(1, sizes.max() + 1):
        for i in range(symbols.size - 1):
            if sizes[i] == length:
                values[position] = symbols[i]
                position += 1


@njit(nogil=True)
def _rarest(weights: np.ndarray, other: int) -> int:
    """Return the last position with the least weight above zero, except `other`."""
    found = -1
    for i in range(weights.size):
        if weights[i] > 0 and i != other and (found < 0 or weights[i] <= weights[found]):
            found = i
    return found


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
