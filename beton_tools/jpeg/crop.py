"""Decode a rectangle of a JPEG. Callable from njit code, inside a prange loop.

    handles = open_decoders(threads)                                    # one for each thread
    scratch = np.empty((threads, scratch_bytes(max_h, max_w, max_jpeg_bytes)), np.uint8)
    # njit, thread t:
    code = decode_region(jpeg, y, x, h, w, packed[offset : offset + 3 * h * w], scratch[t], handles[t])

`code` is 0 or an error code for `describe_error`; after an error the output holds nothing to rely on. All
arrays are contiguous u8. Nothing is allocated and nothing raises; the GIL is not held.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from beton_tools.jpeg.markers import (
    BAD_REGION,
    OK,
    SMALL_SCRATCH,
    JpegError,
    as_bytes_array,
    describe_error,
    parse,
    scan_header,
)
from beton_tools.jpeg.turbo import close_decoders, decompress, open_decoders

CHANNELS = 3


def scratch_bytes(max_height: int, max_width: int, max_jpeg_bytes: int) -> int:
    """Bytes of scratch that decode any region of any image within these limits."""
    return CHANNELS * max_height * max_width + max_jpeg_bytes


@njit(cache=True, nogil=True)
def decode_region(
    src: np.ndarray, y: int, x: int, h: int, w: int, out: np.ndarray, scratch: np.ndarray, handle: int
) -> int:
    """Write pixels [y:y+h, x:x+w] of the JPEG `src` to `out` as h*w*3 RGB bytes; OK or an error code."""
    head = scan_header(src)
    if head.code != OK:
        return head.code
    if y < 0 or x < 0 or h < 1 or w < 1 or y + h > head.height or x + w > head.width:
        return BAD_REGION
    if out.size < CHANNELS * h * w:
        return BAD_REGION
    return _decode_whole(src, head.height, head.width, y, x, h, w, out, scratch, handle)


@njit(cache=True, nogil=True)
def _decode_whole(
    src: np.ndarray,
    height: int,
    width: int,
    y: int,
    x: int,
    h: int,
    w: int,
    out: np.ndarray,
    scratch: np.ndarray,
    handle: int,
) -> int:
    if h == height and w == width:
        return decompress(handle, src.ctypes.data, src.size, out.ctypes.data, height, width)
    if scratch.size < CHANNELS * height * width:
        return SMALL_SCRATCH
    code = decompress(handle, src.ctypes.data, src.size, scratch.ctypes.data, height, width)
    if code == OK:
        _copy_rectangle(scratch, width, y, x, h, w, out)
    return code


@njit(cache=True, nogil=True)
def _copy_rectangle(pixels: np.ndarray, width: int, y: int, x: int, h: int, w: int, out: np.ndarray) -> None:
    row = CHANNELS * w
    for i in range(h):
        start = CHANNELS * ((y + i) * width + x)
        out[i * row : (i + 1) * row] = pixels[start : start + row]


def decode_rgb(jpeg: bytes | np.ndarray, region: tuple[int, int, int, int] | None = None) -> np.ndarray:
    """Decode a JPEG, or its region (y, x, h, w), to (h, w, 3) u8 RGB, outside of loops. Raises JpegError."""
    src = as_bytes_array(jpeg)
    head = parse(src)
    y, x, h, w = region or (0, 0, head.height, head.width)
    out = np.empty((h, w, CHANNELS), np.uint8)
    scratch = np.empty(scratch_bytes(head.height, head.width, src.size), np.uint8)
    handles = open_decoders(1)
    try:
        code = decode_region(src, y, x, h, w, out.reshape(-1), scratch, handles[0])
    finally:
        close_decoders(handles)
    if code != OK:
        raise JpegError(describe_error(code))
    return out
