"""The crop index: one APP9 segment with the lengths of a JPEG's restart segments.

docs/file-format.md describes it. The restart segments follow each other from the start of the scan, so lengths cannot
describe overlaps, and the marker after each segment can be checked.
"""

from __future__ import annotations

import numpy as np

from beton_tools.base.jit import njit
from beton_tools.jpeg import markers
from beton_tools.jpeg.markers import INDEX_MAGIC, Header, JpegError, as_bytes_array, parse, segment, u16

_HEAD = INDEX_MAGIC.size + 1
_MAX_PAYLOAD = 65533  # T.81 B.2.4.6: the 16-bit length counts itself
MAX_SEGMENTS = (_MAX_PAYLOAD - _HEAD) // 4  # with either entry size


@njit(nogil=True)
def mcu_size(head: Header) -> tuple[int, int]:
    """Return an MCU's (height, width) in pixels."""
    return 8 * head.v_max, 8 * head.h_max


@njit(nogil=True)
def mcu_grid(head: Header) -> tuple[int, int]:
    """Return how many (rows, columns) of MCUs the image has."""
    mcu_h, mcu_w = mcu_size(head)
    return (head.height + mcu_h - 1) // mcu_h, (head.width + mcu_w - 1) // mcu_w


@njit(nogil=True)
def segment_grid(src: np.ndarray, head: Header) -> tuple[int, int]:
    """Return the crop index's (rows, segments per row), or (0, 0) if there is none or it does not match the frame."""
    if head.index_at == 0 or not head.single_scan or head.sof == markers.SOF_PROGRESSIVE:
        return 0, 0
    rows, columns = mcu_grid(head)
    if head.restart_interval == 0 or columns % head.restart_interval != 0:
        return 0, 0
    per_row = columns // head.restart_interval
    if head.index_end - head.index_at < _HEAD:
        return 0, 0
    size = np.int64(src[head.index_at + INDEX_MAGIC.size])
    if size not in (2, 4) or head.index_end - head.index_at != _HEAD + size * rows * per_row:
        return 0, 0
    return rows, per_row


@njit(nogil=True)
def segment_length(src: np.ndarray, head: Header, k: int) -> int:
    """Return entry k in the index. segment_grid must have checked the index's size."""
    if src[head.index_at + INDEX_MAGIC.size] == 2:
        return u16(src, head.index_at + _HEAD + 2 * k)
    at = head.index_at + _HEAD + 4 * k
    return (u16(src, at) << 16) | u16(src, at + 2)


@njit(nogil=True)
def ends_segment(src: np.ndarray, end: int, k: int, segments: int) -> bool:
    """Return True if the marker at `end` is the one after segment k.

    This is restart marker k modulo 8, or EOI after the last segment.
    """
    if end + 2 > src.size or src[end] != 0xFF:
        return False
    return src[end + 1] == (markers.EOI if k == segments - 1 else markers.RST0 + (k & 7))


@njit(nogil=True)
def _ends(src: np.ndarray, head: Header, ends: np.ndarray) -> bool:
    at = head.scan_at
    for k in range(ends.size):
        ends[k] = at + segment_length(src, head, k)
        if not ends_segment(src, ends[k], k, ends.size):
            return False
        at = ends[k] + 2
    return True


def read(jpeg: bytes | np.ndarray) -> np.ndarray | None:
    """Return every restart segment's begin and end offset, i64 (rows, segments per row, 2). None without an index.

    Raises:
        JpegError: The header is broken, or the index does not match the file.
    """
    src = as_bytes_array(jpeg)
    head = parse(src)
    if head.index_at == 0:
        return None
    rows, per_row = segment_grid(src, head)
    ends = np.empty(rows * per_row, np.int64)
    if rows == 0 or not _ends(src, head, ends):
        raise JpegError("the crop index does not match the JPEG. Write the file again")
    starts = np.concatenate([[head.scan_at], ends[:-1] + 2])
    return np.stack([starts, ends], axis=-1).reshape(rows, per_row, 2)


def write(lengths: np.ndarray) -> bytes:
    """Return the APP9 segment for restart segments with these lengths in bytes.

    Raises:
        ValueError: There are more segments than one index can hold (see MAX_SEGMENTS).
    """
    size = 2 if lengths.max() < 1 << 16 else 4
    payload = INDEX_MAGIC.tobytes() + bytes([size]) + lengths.astype(f">u{size}").tobytes()
    if len(payload) > _MAX_PAYLOAD:
        raise ValueError(f"{len(lengths)} restart segments do not fit into one index")
    return segment(markers.APP_INDEX, payload)
