"""A slow baseline Huffman decoder, straight from ITU T.81: an independent check of the fast transcoder."""

from __future__ import annotations

from collections.abc import Iterator

Table = dict[str, int]  # code as a string of 0 and 1 -> symbol


def _tables(file: bytes) -> Iterator[tuple[int, bytes]]:
    at = 2
    while file[at + 1] != 0xDA:
        size = int.from_bytes(file[at + 2 : at + 4], "big")
        yield file[at + 1], file[at + 4 : at + 2 + size]
        at += 2 + size
    size = int.from_bytes(file[at + 2 : at + 4], "big")
    yield 0xDA, file[at + 4 : at + 2 + size]
    yield 0, file[at + 2 + size :]


def _huffman(payload: bytes) -> Iterator[tuple[int, Table]]:
    while payload:
        codes: Table = {}
        code, at = 0, 17
        for length in range(1, 17):
            for _ in range(payload[length]):
                codes[f"{code:0{length}b}"] = payload[at]
                code, at = code + 1, at + 1
            code <<= 1
        yield payload[0], codes
        payload = payload[at:]


def _segments(scan: bytes) -> list[str]:
    """The bits of each restart segment."""
    parts, start, at = [], 0, 0
    while True:
        at = scan.index(0xFF, at)
        if scan[at + 1] == 0:
            at += 2
            continue
        parts.append(scan[start:at].replace(b"\xff\0", b"\xff"))
        if scan[at + 1] == 0xD9:
            return ["".join(f"{byte:08b}" for byte in part) for part in parts]
        start = at = at + 2


class _Bits:
    def __init__(self, bits: str) -> None:
        self.bits, self.at = bits, 0

    def symbol(self, table: Table) -> int:
        for length in range(1, 17):
            if (code := self.bits[self.at : self.at + length]) in table:
                self.at += length
                return table[code]
        raise ValueError("no such code")

    def value(self, size: int) -> int:
        bits = self.bits[self.at : self.at + size]
        self.at += size
        if not bits:
            return 0
        return int(bits, 2) if bits[0] == "1" else int(bits, 2) - (1 << size) + 1


def _block(bits: _Bits, dc: Table, ac: Table, predictor: int) -> list[int]:
    block = [predictor + bits.value(bits.symbol(dc))]
    while len(block) < 64:
        run, size = divmod(bits.symbol(ac), 16)
        if size == 0 and run != 15:
            break
        block += [0] * run + [bits.value(size)]
    return block + [0] * (64 - len(block))


def coefficients(file: bytes) -> list[list[int]]:
    """All quantised blocks, zigzag order, in the order of the scan."""
    tables: dict[int, Table] = {}
    interval, blocks = 0, []
    for marker, payload in _tables(file):
        if marker == 0xC4:
            tables |= dict(_huffman(payload))
        elif marker == 0xDD:
            interval = int.from_bytes(payload, "big")
        elif 0xC0 <= marker <= 0xC1:
            height, width = int.from_bytes(payload[1:3], "big"), int.from_bytes(payload[3:5], "big")
            factors = [divmod(payload[7 + 3 * c], 16) for c in range(payload[5])]
        elif marker == 0xDA:
            chosen = [divmod(payload[2 + 2 * c], 16) for c in range(payload[0])]
        elif marker == 0:
            segments = _segments(payload)
    if len(factors) == 1:
        factors = [(1, 1)]
    mcu_w, mcu_h = 8 * max(h for h, _ in factors), 8 * max(v for _, v in factors)
    mcus = -(-width // mcu_w) * -(-height // mcu_h)
    interval = interval or mcus
    for number, bits in enumerate(map(_Bits, segments)):
        predictors = [0] * len(factors)
        for _ in range(min(interval, mcus - number * interval)):
            for c, (h, v) in enumerate(factors):
                for _ in range(h * v):
                    dc, ac = tables[chosen[c][0]], tables[16 + chosen[c][1]]
                    blocks.append(_block(bits, dc, ac, predictors[c]))
                    predictors[c] = blocks[-1][0]
    return blocks
