"""The header parser reads supported headers and refuses all others."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from beton_tools.jpeg import JpegError, markers, parse
from beton_tools.jpeg.markers import SOF_PROGRESSIVE, segment

SOF = 0xC0


def saved(**options):
    buffer = io.BytesIO()
    image = Image.fromarray(np.arange(48 * 64 * 3, dtype=np.uint8).reshape(48, 64, 3))
    image.convert(options.pop("mode", "RGB")).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def test_size_sampling_and_restarts_are_those_of_the_file(jpeg, subsampling):
    file = np.frombuffer(jpeg(37, 61, subsampling), np.uint8)
    head = parse(file)
    assert (head.height, head.width, markers.subsampling(file, head)) == (37, 61, subsampling)
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
        (saved()[:2] + segment(0xDD, b"\0"), "broken"),
        (saved()[:2] + segment(0xDC, b"\0\1"), "unsupported"),
    ],
)
def test_hostile_and_unsupported_headers_are_refused_in_one_line(file, why):
    with pytest.raises(JpegError, match=why) as error:
        parse(file)
    assert "\n" not in str(error.value)


def test_two_frames_are_refused():
    file = saved()
    at = file.index(bytes([0xFF, SOF]))
    with pytest.raises(JpegError, match="broken"):
        parse(file[:at] + file[at : at + 19] + file[at:])
