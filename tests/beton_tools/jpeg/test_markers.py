"""The parser reads supported headers and refuses all others; the index gives the restart segments, a wrong one does no harm."""

import io

import numpy as np
import pytest
from PIL import Image

from beton_tools.jpeg import JpegError, add_index, index, parse
from beton_tools.jpeg.markers import OK, SOF_PROGRESSIVE, as_bytes_array, scan_header, segment

from .conftest import pillow

SOF = 0xC0
FACTORS = {"4:2:0": (2, 2), "4:2:2": (2, 1), "4:4:0": (1, 2), "4:1:1": (4, 1)}  # across, down


def saved(**options):
    buffer = io.BytesIO()
    image = Image.fromarray(np.arange(48 * 64 * 3, dtype=np.uint8).reshape(48, 64, 3))
    image.convert(options.pop("mode", "RGB")).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def test_size_sampling_and_restarts_are_those_of_the_file(jpeg, subsampling):
    file = np.frombuffer(jpeg(37, 61, subsampling), np.uint8)
    head = parse(file)
    assert (head.height, head.width) == (37, 61)
    assert (head.h_max, head.v_max) == FACTORS.get(subsampling, (1, 1))
    assert (head.sof, head.restart_interval, head.index_at) == (SOF, 0, 0)
    assert parse(saved(restart_marker_blocks=3)).restart_interval == 3
    assert parse(saved(progressive=True)).sof == SOF_PROGRESSIVE
    assert parse(np.frombuffer(saved(), np.uint8)).jfif


def test_colour_transform_of_an_adobe_segment_is_read():
    adobe = segment(0xEE, b"Adobe" + bytes([0, 100, 0, 0, 0, 0, 0]))
    assert parse(saved()[:2] + adobe + saved()[2:]).adobe == 0
    assert parse(saved()).adobe == -1


def test_a_header_cut_anywhere_is_an_error(jpeg):
    file = jpeg(20, 20)
    for size in range(parse(file).scan_at):
        with pytest.raises(JpegError):
            parse(file[:size])


def patched(offset, value):
    """A file with one byte of its frame header changed, at an offset from the FF of the marker."""
    file = bytearray(saved())
    file[file.index(bytes([0xFF, SOF])) + offset] = value
    return bytes(file)


@pytest.mark.parametrize(
    ("file", "why"),
    [
        (b"\x89PNG\r\n\x1a\n", "not a JPEG"),
        (saved(mode="CMYK"), "unsupported"),
        (patched(1, 0xC9), "unsupported"),  # arithmetic coding
        (patched(4, 12), "unsupported"),  # bits per sample
        (patched(6, 0), "broken"),  # no height: 48 needs its low byte only
        (patched(11, 0x50), "broken"),  # five blocks across
        (patched(3, 18), "broken"),  # frame longer than its components
        (saved()[:2] + b"\0" + saved()[2:], "broken"),  # garbage between segments
        (saved()[:2] + b"\xff\xd8" + saved()[2:], "broken"),
        (saved()[:2] + saved()[saved().index(bytes([0xFF, SOF])) :][:19] + saved()[2:], "broken"),  # two frames
        (saved()[:2] + segment(0xDD, b"\0"), "broken"),
        (saved()[:2] + segment(0xDC, b"\0\1"), "unsupported"),
    ],
)
def test_hostile_and_unsupported_headers_are_refused_in_one_line(file, why):
    with pytest.raises(JpegError, match=why) as error:
        parse(file)
    assert "\n" not in str(error.value)


def entries(file):
    """(offset of the first entry, number of entries of two bytes)."""
    head = scan_header(as_bytes_array(file))
    assert file[head.index_at + 7] == 2
    return head.index_at + 8, (head.index_end - head.index_at - 8) // 2


def test_long_segments_get_wide_entries():
    lengths = np.array([70_000, 3, 2])
    assert index.write(lengths)[11:] == b"\4" + lengths.astype(">u4").tobytes()
    assert index.write(lengths[1:])[11:] == b"\2" + lengths[1:].astype(">u2").tobytes()


def test_a_file_without_index_has_none(jpeg):
    assert index.read(jpeg(50, 50)) is None


@pytest.mark.parametrize("change", [1, -1, 255, 30_000])
def test_every_wrong_entry_is_detected_and_the_pixels_are_right(jpeg, decode, change):
    file = add_index(jpeg(64, 96), 2)
    whole, (at, count) = pillow(file), entries(file)
    for k in range(count):
        false = bytearray(file)
        value = int.from_bytes(file[at + 2 * k : at + 2 * k + 2], "big") + change
        false[at + 2 * k : at + 2 * k + 2] = (value % 65536).to_bytes(2, "big")
        with pytest.raises(JpegError, match="does not match"):
            index.read(bytes(false))
        code, pixels = decode(bytes(false), 20, 40, 30, 30)
        assert code == OK
        np.testing.assert_array_equal(pixels, whole[20:50, 40:70])


@pytest.mark.parametrize("offset", [-1, 7, 8])
def test_an_index_of_the_wrong_shape_is_not_used(jpeg, decode, offset):
    file = add_index(jpeg(64, 96), 2)
    head = scan_header(as_bytes_array(file))
    false = bytearray(file)
    false[head.index_at + 7] ^= 6  # entries of 4 bytes
    if offset < 0:  # a restart interval that does not divide the row
        false[head.index_at + 7] ^= 6
        false[file.index(b"\xff\xdd") + 5] = 5
    code, _ = decode(bytes(false), 20, 40, 30, 30)
    assert code == OK if offset > 0 else code != OK  # with a false interval the whole image is damaged, too
    with pytest.raises(JpegError):
        index.read(bytes(false))
