"""Hostile bytes give an error code or pixels, never a crash, a hang or a write outside of the buffers.

The corpus contains small constructed files that once failed, or that are hostile by design.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beton_tools.images import BadImage, EncodeOptions, encode_sample
from beton_tools.jpeg import JpegError, add_index, describe_error, index, parse
from beton_tools.jpeg.markers import OK
from beton_tools.jpeg.turbo import compress

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.jpg"))
LIMIT = 5  # seconds of CPU time for one file


def fuzz(examples: int, derandomize: bool = True) -> settings:
    return settings(
        max_examples=examples,
        derandomize=derandomize,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )


@pytest.fixture(autouse=True)
def compiled(decode):
    """Compile before LIMIT applies; compiling may take longer."""
    for file in SEEDS:
        read_all(file, decode)


def check(file: bytes, decode, region=(3, 5, 20, 30)):
    start = time.process_time()
    read_all(file, decode, region)
    assert time.process_time() - start < LIMIT


def read_all(file: bytes, decode, region=(3, 5, 20, 30)):
    """Run all readers of JPEGs on the file; `decode` guards the memory after its buffers."""
    code, _ = decode(file, *region)
    assert "unknown" not in describe_error(code)
    for read in (parse, index.read):
        try:
            read(file)
        except JpegError as error:
            assert "\n" not in str(error)
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
        assert decode(stored.data, 0, 0, stored.height, stored.width)[0] == OK


def seeds() -> list[bytes]:
    """Small valid files with and without index, of several kinds of sampling."""
    rng = np.random.default_rng(0)
    image = np.repeat(np.repeat(rng.integers(0, 256, (8, 12, 3), np.uint8), 6, axis=0), 6, axis=1)
    plain = [compress(image, 80, s) for s in ("4:2:0", "4:4:4", "4:4:0", "gray")]
    return plain + [add_index(file, 1) for file in plain]


SEEDS = seeds()


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A seed with bytes changed (most of them in the header), removed, repeated, or truncated."""
    file = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 6))):
        last = len(file) - 1
        at = draw(st.one_of(st.integers(0, min(last, 700)), st.integers(0, last)))
        kind = draw(st.integers(0, 5))
        if kind < 3:
            file[at] = draw(
                st.one_of(st.integers(0, 255), st.sampled_from([0, 0xFF, 0xD0, 0xD9, 0xDA, 0xC0]))
            )
        elif kind == 3:
            file[at : at + draw(st.integers(1, 40))] = b""
        elif kind == 4:
            file[at:at] = file[at : at + draw(st.integers(1, 40))]
        else:
            file = file[:at]
        if not file:
            return b""
    return bytes(file)


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_files_of_the_corpus_do_no_harm(path, decode):
    check(path.read_bytes(), decode)


@fuzz(1500)
@given(file=damaged())
def test_damaged_files_do_no_harm(file, decode):
    check(file, decode)


@fuzz(300)
@given(file=st.binary(max_size=300).map(lambda tail: b"\xff\xd8" + tail))
def test_random_bytes_do_no_harm(file, decode):
    check(file, decode)


def test_every_truncation_does_no_harm(decode):
    for file in SEEDS[:2] + SEEDS[4:6]:
        for size in range(0, len(file), 3):
            check(file[:size], decode)


@pytest.mark.slow
@fuzz(20_000, derandomize=False)  # new files each time
@given(file=damaged(), region=st.tuples(*[st.integers(-2, 60)] * 4))
def test_damaged_files_do_no_harm_at_length(file, region, decode):
    check(file, decode, region)
