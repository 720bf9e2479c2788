"""The compiled decoding of one stored image."""

import numpy as np

from beton_tools.jpeg import crop
from beton_tools.jpeg.markers import scan_header
from beton_tools.jpeg.turbo import close_decoders, open_decoders
from beton_tools.read.beton_set import BetonSet
from beton_tools.read.format import Beton
from fastft.data import decode
from fastft.data.decode import decode_stored, find_stored, read_stored
from fastft.data.pread import read_at


def test_the_jpeg_header_of_a_sample_is_scanned_once(indexed_beton, monkeypatch):
    """Counted in the uncompiled functions, which call the same functions as the compiled ones."""
    scanned = []

    def count_scan(source):
        scanned.append(len(source))
        return scan_header(source)

    for module in (decode, crop):
        monkeypatch.setattr(module, "scan_header", count_scan)
    monkeypatch.setattr(decode, "decode_scanned", crop.decode_scanned.py_func)
    beton, decoders = BetonSet.open(indexed_beton), open_decoders(1)
    stored = find_stored(beton, np.array([7]))
    region = np.array([5, 6, 20, 30])
    buffer, scratch = (np.empty(1 << 22, np.uint8) for _ in range(2))
    out = np.empty(3 * 20 * 30, np.uint8)
    assert read_stored(stored, 0, region, buffer) == 0
    code = decode_stored.py_func(stored, 0, region, buffer, out, scratch, decoders[0])
    close_decoders(decoders)
    assert code == 0
    assert scanned == [beton.sizes[7]]
    assert np.array_equal(out.reshape(20, 30, 3), crop.decode_rgb(beton.image_bytes(7), (5, 6, 20, 30)))


def test_reading_beyond_the_end_or_from_a_closed_file_fails(indexed_beton):
    beton, target = Beton.open(indexed_beton), np.zeros(16, np.uint8)
    assert read_at(beton.descriptor, beton.file_size - 16, 16, target)
    assert target.tobytes() == indexed_beton.read_bytes()[-16:]
    assert not read_at(beton.descriptor, beton.file_size - 15, 16, target)
    assert not read_at(-1, 0, 16, target)
