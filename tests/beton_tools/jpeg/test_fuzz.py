"""Fuzz targets of the JPEG code: hostile bytes give an error code or pixels, never a crash, a hang or a write outside
of the buffers.

The corpus contains small constructed files that once failed, or that are hostile by design.
"""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st

from beton_tools.jpeg import JpegError, add_index, describe_error, index, parse, scratch_bytes
from beton_tools.jpeg.markers import OK, as_bytes_array, scan_header
from beton_tools.jpeg.turbo import compress
from beton_tools.write.images import BadImage, EncodeOptions, encode_sample
from tests.beton_tools.fuzzing import damaged, fuzz_target, time_limit

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.jpg"))
MARKERS = (0, 0xFF, 0xD0, 0xD9, 0xDA, 0xC0, 0xC4, 0xDD, 0xE9)
REGION = (3, 5, 20, 30)


@cache  # not at import, which would compile it in every process of the tests at the same time
def seeds() -> list[bytes]:
    """Small valid files with and without index, of several kinds of sampling."""
    rng = np.random.default_rng(0)
    image = np.repeat(np.repeat(rng.integers(0, 256, (8, 12, 3), np.uint8), 6, axis=0), 6, axis=1)
    plain = [compress(image, 80, s) for s in ("4:2:0", "4:4:4", "4:4:0", "gray")]
    return plain + [add_index(file, 1) for file in plain]


damaged_seeds = st.deferred(lambda: damaged(seeds(), 0, 700, MARKERS))
regions = st.tuples(st.integers(-1, 47), st.integers(-1, 71), st.integers(0, 49), st.integers(0, 73))


@pytest.fixture(autouse=True, scope="module")
def compiled():
    """Compile before the time limit applies; compiling may take longer."""
    for file in seeds():
        encode_sample(file, EncodeOptions())
        index.read(file)


# markers --------------------------------------------------------------------------------------------------------------

headers = st.one_of(damaged_seeds, st.binary(max_size=300).map(lambda tail: b"\xff\xd8" + tail))


def check_markers(guarded, file: bytes) -> None:
    """`guarded` ends the process when a byte after the file is read."""
    with time_limit():
        head = scan_header(guarded(file))
    assert "unknown" not in describe_error(head.code)
    if head.code != OK:
        with pytest.raises(JpegError) as caught:
            parse(file)
        assert "\n" not in str(caught.value)
        return
    assert parse(file) == head and min(head.height, head.width) > 0 and head.components in (1, 3)
    for at in (head.sof_at, head.sos_at):
        assert 2 <= at < head.scan_at <= len(file) and file[at] == 0xFF
    assert not head.index_at or head.index_at <= head.index_end <= head.scan_at


test_markers, test_markers_at_length = fuzz_target(check_markers, headers, "guarded")


# crop index -----------------------------------------------------------------------------------------------------------

# the index begins after SOI, JFIF and its own marker, length and magic; it has 3 * 5 to 6 * 9 entries of two bytes
indexed_files = st.deferred(lambda: damaged(seeds()[4:], 20, 150, MARKERS))


def check_index(decode, data: tuple[bytes, tuple[int, int, int, int]]) -> None:
    """An index is found wrong, or its segments are those of the file; a region is that region of the whole image."""
    file, region = data
    with time_limit():
        code, pixels = decode(file, *region)
        try:
            segments = index.read(file)
        except JpegError as error:
            assert "\n" not in str(error)
            segments = None
        head = scan_header(as_bytes_array(file))
        if segments is not None:
            flat = segments.reshape(-1, 2)
            assert flat[0, 0] == head.scan_at and flat[-1, 1] <= len(file) - 2
            assert (flat[:, 0] <= flat[:, 1]).all() and (flat[1:, 0] == flat[:-1, 1] + 2).all()
        if code != OK or head.height * head.width > 1 << 16:
            return
        whole_code, whole = decode(file, 0, 0, head.height, head.width)
        if whole_code == OK:
            y, x, h, w = region
            np.testing.assert_array_equal(pixels, whole[y : y + h, x : x + w])


test_crop_index, test_crop_index_at_length = fuzz_target(check_index, st.tuples(indexed_files, regions), "decode")


# conversion and decoding ----------------------------------------------------------------------------------------------


def check_all(decode, data: tuple[bytes, tuple[int, int, int, int]]) -> None:
    with time_limit():
        read_all(decode, *data)


def read_all(decode, file: bytes, region: tuple[int, int, int, int]) -> None:
    """Run all readers of JPEGs on the file; `decode` guards the memory after its buffers."""
    code, _ = decode(file, *region)
    assert "unknown" not in describe_error(code)
    try:
        indexed = add_index(file)
    except JpegError:
        pass
    else:
        assert index.read(indexed) is not None
        head = parse(indexed)
        decode(indexed, 0, 0, 1, 1)
        decode(indexed, head.height - 1, head.width - 1, 1, 1)
    try:
        stored = encode_sample(file, EncodeOptions())
    except BadImage:
        pass
    else:  # whatever conversion accepts can be decoded in training
        memory = scratch_bytes(stored.height, stored.width, len(stored.data))
        assert decode(stored.data, 0, 0, stored.height, stored.width, scratch=memory)[0] == OK


test_conversion_and_decoding, test_conversion_and_decoding_at_length = fuzz_target(
    check_all, st.tuples(damaged_seeds, regions), "decode"
)


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_files_of_the_corpus(path, decode, guarded):
    check_markers(guarded, path.read_bytes())
    check_index(decode, (path.read_bytes(), REGION))
    check_all(decode, (path.read_bytes(), REGION))


def test_every_truncation(decode):
    for file in seeds()[:2] + seeds()[4:6]:
        for size in range(0, len(file), 3):
            check_all(decode, (file[:size], REGION))
