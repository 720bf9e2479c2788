"""JPEG markers: where a file's parts begin, and what its frame header contains (ITU T.81, annex B).

`scan_header` is the only parser. It is njit, bounds-checked and allocation-free, so that the decode loop can call it
for every image. `parse` wraps it for Python callers: it raises an exception instead of returning a code.

The parser is stricter than libjpeg on purpose. Garbage between markers, repeated frames and lengths beyond the end of
the file are errors here, so that an accepted header means the same to this parser and to libjpeg-turbo.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from beton_tools.base.errors import UserError
from beton_tools.base.jit import njit

SOI, EOI, SOS, DQT, DHT, DRI = 0xD8, 0xD9, 0xDA, 0xDB, 0xC4, 0xDD
SOF_BASELINE, SOF_EXTENDED, SOF_PROGRESSIVE = 0xC0, 0xC1, 0xC2
RST0, APP0, APP14, APP15, COM = 0xD0, 0xE0, 0xEE, 0xEF, 0xFE
APP_INDEX = 0xE9  # APP9, which JFIF (0), Exif (1), ICC (2), JUMBF (11), Photoshop (13) and Adobe (14) leave free
INDEX_MAGIC = np.frombuffer(b"cropidx", np.uint8)  # followed by one byte, an entry's size
ADOBE_MAGIC = np.frombuffer(b"Adobe", np.uint8)
JFIF_MAGIC = np.frombuffer(b"JFIF\0", np.uint8)

# Return codes for everything njit in this package.
OK, NOT_JPEG, BAD_HEADER, UNSUPPORTED, BAD_REGION, SMALL_SCRATCH, DAMAGED, OTHER_SIZE = range(8)
_MEANING = {
    OK: "no error",
    NOT_JPEG: "not a JPEG file (it does not start with FF D8)",
    BAD_HEADER: "broken JPEG header (truncated, or an unexpected marker)",
    UNSUPPORTED: "unsupported kind of JPEG (only 8-bit Huffman-coded grey or colour files are supported)",
    BAD_REGION: "the region lies outside the image, or the output buffer is too small for it",
    SMALL_SCRATCH: "the image is larger than the scratch memory (see scratch_bytes)",
    DAMAGED: "damaged JPEG data (libturbojpeg rejected it or had to guess pixels)",
    OTHER_SIZE: "the size of the JPEG differs from the size in the metadata",
}


class JpegError(UserError):
    """A JPEG that cannot be read, or not losslessly. The message is the reason."""


class DamagedJpeg(JpegError):
    """A supported JPEG whose entropy-coded data are damaged."""


def describe_error(code: int) -> str:
    """Describe a return code as text."""
    return _MEANING.get(int(code), f"unknown JPEG error code {code}")


def check_code(code: int) -> None:
    """Raise the error for a return code other than OK: DamagedJpeg for DAMAGED, else JpegError."""
    if code != OK:
        raise (DamagedJpeg if code == DAMAGED else JpegError)(describe_error(code))


class Header(NamedTuple):
    """Result of `scan_header`. Offsets are bytes from the start of the file, and 0 where absent."""

    code: int
    sof: int  # the frame's marker: SOF_BASELINE, SOF_EXTENDED or SOF_PROGRESSIVE
    height: int
    width: int
    components: int
    h_max: int  # largest sampling factors. 1 for grey, whose MCU is one block (T.81 A.2.2)
    v_max: int
    restart_interval: int  # MCUs, or 0 without restart markers
    single_scan: bool  # the first scan contains all components
    sof_at: int  # offset of the frame marker's FF byte
    sos_at: int
    scan_at: int  # first entropy-coded byte
    index_at: int  # payload of the crop index segment
    index_end: int
    jfif: bool
    adobe: int  # the Adobe segment's colour transform, or -1 without such a segment


@njit(nogil=True)
def failed(code: int) -> Header:
    """Return a Header that contains only an error code."""
    return Header(code, 0, 0, 0, 0, 0, 0, 0, False, 0, 0, 0, 0, 0, False, -1)


@njit(nogil=True)
def u16(src: np.ndarray, at: int) -> int:
    """Read big-endian 16 bits at `at`. The caller must have checked the bounds."""
    return (np.int64(src[at]) << 8) | np.int64(src[at + 1])


@njit(nogil=True)
def starts_with(src: np.ndarray, at: int, end: int, magic: np.ndarray) -> bool:
    """Return True if src[at:end] begins with `magic`."""
    if end - at < magic.size:
        return False
    for i in range(magic.size):  # noqa: SIM110 - numba has no all()
        if src[at + i] != magic[i]:
            return False
    return True


@njit(nogil=True)
def next_segment(src: np.ndarray, at: int) -> tuple[int, int, int]:
    """Return (marker, payload start, payload end) for the segment whose FF byte is at `at`.

    The marker is -1 if there is none.

    Only markers with a length are segments here. Fill bytes (FF FF) before the marker are legal and skipped.
    """
    if at < 0 or at + 4 > src.size or src[at] != 0xFF:
        return -1, at, at
    while at + 4 < src.size and src[at + 1] == 0xFF:
        at += 1
    marker = np.int64(src[at + 1])
    if marker < SOF_BASELINE or RST0 <= marker <= EOI or at + 4 > src.size:
        return -1, at, at
    end = at + 2 + u16(src, at + 2)
    if end < at + 4 or end > src.size:
        return -1, at, at
    return marker, at + 4, end


@njit(nogil=True)
def _sampling(src: np.ndarray, at: int, end: int) -> tuple[int, int, int]:
    """Return (components, h_max, v_max) for the frame payload src[at:end]. components is 0 if it is broken."""
    if end - at < 6:
        return 0, 0, 0
    components = np.int64(src[at + 5])
    if components == 0 or end - at != 6 + 3 * components:
        return 0, 0, 0
    h_max, v_max = 1, 1
    for c in range(components):
        factors = np.int64(src[at + 7 + 3 * c])
        h, v = factors >> 4, factors & 15
        if not (1 <= h <= 4 and 1 <= v <= 4):
            return 0, 0, 0
        h_max, v_max = max(h_max, h), max(v_max, v)
    if components == 1:
        return 1, 1, 1
    return components, h_max, v_max


@njit(nogil=True)
def scan_header(src: np.ndarray) -> Header:
    """Walk the segments in `src` (u8) up to the first scan."""
    if src.size < 4 or src[0] != 0xFF or src[1] != SOI:
        return failed(NOT_JPEG)
    at = np.int64(2)  # not a constant with type int: `next_segment` would be compiled again for it
    sof, height, width, components, h_max, v_max = 0, 0, 0, 0, 0, 0
    interval, sof_at, index_at, index_end = 0, 0, 0, 0
    jfif, adobe = False, -1
    while True:
        marker, begin, end = next_segment(src, at)
        if marker < 0:
            return failed(BAD_HEADER)
        if marker == SOS:
            break
        if marker in (SOF_BASELINE, SOF_EXTENDED, SOF_PROGRESSIVE):
            components, h_max, v_max = _sampling(src, begin, end)
            if components == 0 or sof != 0:
                return failed(BAD_HEADER)
            sof, sof_at = marker, begin - 4
            height, width = u16(src, begin + 1), u16(src, begin + 3)
            if src[begin] != 8 or components not in (1, 3):
                return failed(UNSUPPORTED)
            if height == 0 or width == 0:
                return failed(BAD_HEADER)
        elif marker == DRI:
            if end - begin != 2:
                return failed(BAD_HEADER)
            interval = u16(src, begin)
        elif marker == APP_INDEX and starts_with(src, begin, end, INDEX_MAGIC):
            index_at, index_end = begin, end
        elif marker == APP0 and end - begin >= 14 and starts_with(src, begin, end, JFIF_MAGIC):
            jfif = True
        elif marker == APP14 and end - begin >= 12 and starts_with(src, begin, end, ADOBE_MAGIC):
            adobe = np.int64(src[begin + 11])
        elif not (marker in (DHT, DQT, COM) or APP0 <= marker <= APP15):
            return failed(UNSUPPORTED)
        at = end
    if sof == 0 or end - begin < 6 or end - begin != 4 + 2 * np.int64(src[begin]):
        return failed(BAD_HEADER)
    single_scan = sof != SOF_PROGRESSIVE and np.int64(src[begin]) == components
    return Header(
        OK, sof, height, width, components, h_max, v_max, interval, single_scan,
        sof_at, begin - 4, end, index_at, index_end, jfif, adobe,
    )  # fmt: skip


def segment(marker: int, payload: bytes) -> bytes:
    """Return a marker segment's bytes."""
    return bytes([0xFF, marker]) + (len(payload) + 2).to_bytes(2, "big") + payload


def as_bytes_array(jpeg: bytes | np.ndarray) -> np.ndarray:
    """Return the file as a contiguous u8 array.

    The array is a copy if the file is read-only, because Numba would compile everything again for a read-only array.
    """
    return np.require(
        np.frombuffer(jpeg, np.uint8) if not isinstance(jpeg, np.ndarray) else jpeg, requirements=["C", "W"]
    )


def parse(jpeg: bytes | np.ndarray) -> Header:
    """Read a JPEG file's header. Raises JpegError if the header is broken or the JPEG is of an unsupported kind."""
    head = scan_header(as_bytes_array(jpeg))
    check_code(head.code)
    return head
