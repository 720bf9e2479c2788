"""Decode a rectangle from a JPEG. Callable from njit code, inside a prange loop.

    handles = open_decoders(threads)                                    # one per thread
    scratch = np.empty((threads, scratch_bytes(max_h, max_w, max_jpeg_bytes)), np.uint8)
    # njit, thread t:
    code, at, stride = find_region(jpeg, head, y, x, h, w, scratch[t], handles[t])
    code = decode_region(jpeg, head, y, x, h, w, packed[offset : offset + 3 * h * w], scratch[t], handles[t])

`find_region` leaves the pixels where they were decoded, so that nothing is copied. `decode_region` packs them. `code` is
0 or an error code for `describe_error`. After an error the pixels are undefined. All arrays are contiguous u8. Nothing
is allocated, nothing raises, and the GIL is not held.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from beton_tools.base.jit import njit
from beton_tools.base.pixels import CHANNELS
from beton_tools.jpeg import markers
from beton_tools.jpeg.index import ends_segment, mcu_size, segment_grid, segment_length
from beton_tools.jpeg.markers import OK, DamagedJpeg, Header, as_bytes_array, check_code, describe_error
from beton_tools.jpeg.memory import copy_bytes
from beton_tools.jpeg.turbo import close_decoders, decompress, open_decoders

_NARROW = 4  # pixels. Where a row has at most two chroma samples, libjpeg repeats them instead of interpolating


def scratch_bytes(max_height: int, max_width: int, max_jpeg_bytes: int) -> int:
    """Return how many scratch bytes suffice to decode any region in any image within these limits."""
    return CHANNELS * max_height * max_width + max_jpeg_bytes


class Rectangle(NamedTuple):
    """A pixel region."""

    y: int
    x: int
    h: int
    w: int


class Cover(NamedTuple):
    """Restart segments that form a block: MCU rows [top, bottom), and strips [left, right) in each row."""

    top: int
    bottom: int
    left: int
    right: int


@njit(nogil=True)
def decode_region(
    src: np.ndarray, head: Header, y: int, x: int, h: int, w: int, out: np.ndarray, scratch: np.ndarray, handle: int
) -> int:
    """Write pixels [y:y+h, x:x+w] of the JPEG `src` to `out` as h*w*3 RGB bytes. Returns OK or an error code.

    Args:
        head: The JPEG's header, from `scan_header`. Its code must be OK.
    """
    code, at, stride = find_region(src, head, y, x, h, w, scratch, handle)
    if code == OK:
        code = pack_rows(scratch, at, stride, h, w, out)
    return code


@njit(nogil=True)
def pack_rows(pixels: np.ndarray, at: int, stride: int, h: int, w: int, out: np.ndarray) -> int:
    """Copy h rows, w RGB pixels each, from `pixels[at + row * stride]` to `out`, without gaps.

    Returns OK, or BAD_REGION if `out` is too small.
    """
    row_bytes = CHANNELS * w
    if out.size < row_bytes * h:
        return markers.BAD_REGION
    for row in range(h):
        copy_bytes(out, row * row_bytes, pixels, at + row * stride, row_bytes)
    return OK


@njit(nogil=True)
def find_region(
    src: np.ndarray, head: Header, y: int, x: int, h: int, w: int, scratch: np.ndarray, handle: int
) -> tuple[int, int, int]:
    """Decode pixels [y:y+h, x:x+w] of the JPEG `src`, and what surrounds them, into `scratch`.

    Args:
        head: The JPEG's header, from `scan_header`. Its code must be OK.

    Returns:
        (code, at, stride). code: OK or an error code. The region's row r begins at `scratch[at + r * stride]`.
    """
    if y < 0 or x < 0 or h < 1 or w < 1 or y + h > head.height or x + w > head.width:
        return markers.BAD_REGION, 0, 0
    region = Rectangle(y, x, h, w)
    if segment_grid(src, head)[0] > 0:
        code, at, stride = _decode_segments(src, head, region, scratch, handle)
        if code == OK:
            return code, at, stride
    stride = CHANNELS * head.width
    if scratch.size < stride * head.height:
        return markers.SMALL_SCRATCH, 0, 0
    code = decompress(handle, src.ctypes.data, src.size, scratch.ctypes.data, head.height, head.width)
    return code, y * stride + CHANNELS * x, stride


@njit(nogil=True)
def _covering(head: Header, region: Rectangle) -> Cover:
    """Return the segments that contain the region.

    Where chroma is subsampled, libjpeg interpolates each sample with its neighbours ("fancy" upsampling). The segments
    therefore cover one more pixel on each side, and the cut changes only pixels outside the region.
    """
    mcu_h, mcu_w = mcu_size(head)
    strip_w = mcu_w * head.restart_interval
    margin_y, margin_x = np.int64(head.v_max > 1), np.int64(head.h_max > 1)
    top = max(region.y - margin_y, 0) // mcu_h
    left = max(region.x - margin_x, 0) // strip_w
    bottom = (min(region.y + region.h + margin_y, head.height) + mcu_h - 1) // mcu_h
    right = (min(region.x + region.w + margin_x, head.width) + strip_w - 1) // strip_w
    if min(right * strip_w, head.width) - left * strip_w <= _NARROW and left > 0:
        left -= 1
    return Cover(top, bottom, left, right)


@njit(nogil=True)
def _decode_segments(
    src: np.ndarray, head: Header, region: Rectangle, scratch: np.ndarray, handle: int
) -> tuple[int, int, int]:
    """Assemble the segments that contain the region as a small JPEG in scratch, and decode it behind that."""
    cover = _covering(head, region)
    mcu_h, mcu_w = mcu_size(head)
    strip_w = mcu_w * head.restart_interval
    y, x = cover.top * mcu_h, cover.left * strip_w
    w = min(cover.right * strip_w, head.width) - x
    h = min(cover.bottom * mcu_h, head.height, region.y + region.h + 1) - y  # may end inside an MCU
    if scratch.size < src.size + CHANNELS * h * w:
        return markers.SMALL_SCRATCH, 0, 0
    n = _write_header(src, head, h, w, scratch)
    n = _write_segments(src, head, cover, scratch, n)
    if n == 0:
        return markers.BAD_HEADER, 0, 0
    pixels, stride = src.size, CHANNELS * w
    code = decompress(handle, scratch.ctypes.data, n, scratch.ctypes.data + pixels, h, w)
    return code, pixels + (region.y - y) * stride + CHANNELS * (region.x - x), stride


@njit(nogil=True)
def _write_header(src: np.ndarray, head: Header, height: int, width: int, small: np.ndarray) -> int:
    """Copy the header without the crop index to `small`, with another image size. Returns how many bytes it has."""
    index_at = head.index_at - 4
    rest = head.scan_at - head.index_end
    copy_bytes(small, 0, src, 0, index_at)
    copy_bytes(small, index_at, src, head.index_end, rest)
    at = head.sof_at + 5
    if at > index_at:
        at -= head.index_end - index_at
    small[at], small[at + 1] = height >> 8, height & 255
    small[at + 2], small[at + 3] = width >> 8, width & 255
    return index_at + rest


@njit(nogil=True)
def _write_segments(src: np.ndarray, head: Header, cover: Cover, small: np.ndarray, n: int) -> int:
    """Append the covered segments, with renumbered markers, and an EOI marker.

    Returns the new size, or 0 if the index is wrong. All entries are checked, because the index is used only if it is
    right everywhere. The segments are disjoint parts of `src`, so `src.size` bytes suffice for `small`.
    """
    rows, per_row = segment_grid(src, head)
    start, count = head.scan_at, 0
    for row in range(rows):
        for column in range(per_row):
            k = row * per_row + column
            end = start + segment_length(src, head, k)
            if not ends_segment(src, end, k, rows * per_row):
                return 0
            end += 2
            if cover.top <= row < cover.bottom and cover.left <= column < cover.right:
                copy_bytes(small, n, src, start, end - start)
                n += end - start
                small[n - 1] = markers.RST0 + (count & 7)
                count += 1
            start = end
    small[n - 1] = markers.EOI
    return n


def decode_rgb(jpeg: bytes | np.ndarray, region: tuple[int, int, int, int] | None = None) -> np.ndarray:
    """Decode a JPEG, or its region (y, x, h, w), to (h, w, 3) u8 RGB. For single images. Loops use decode_region.

    Raises:
        JpegError: The file is not a JPEG or is an unsupported kind, or the region lies outside the image.
        DamagedJpeg: The data are damaged, so that the decoder would have to guess pixels.
    """
    src = as_bytes_array(jpeg)
    head = markers.parse(src)
    y, x, h, w = region or (0, 0, head.height, head.width)
    out = np.empty((h, w, CHANNELS), np.uint8)
    scratch = np.empty(scratch_bytes(head.height, head.width, src.size), np.uint8)
    handles = open_decoders(1)
    try:
        code = decode_region(src, head, y, x, h, w, out.reshape(-1), scratch, handles[0])
    finally:
        close_decoders(handles)
    check_code(code)
    return out


def decode_reduced(jpeg: bytes, factor: int) -> np.ndarray:
    """Decode a whole JPEG at 1/factor of its height and width, both rounded up, to (h, w, 3) u8 RGB.

    `factor` is 1, 2, 4 or 8. libjpeg averages pixel blocks in the DCT domain, which is much faster than decoding all
    pixels. Raises JpegError and DamagedJpeg like `decode_rgb`.
    """
    src = as_bytes_array(jpeg)
    head = markers.parse(src)
    height, width = -(-head.height // factor), -(-head.width // factor)
    out = np.empty((height, width, CHANNELS), np.uint8)
    handles = open_decoders(1)
    try:
        code = decompress(handles[0], src.ctypes.data, src.size, out.ctypes.data, height, width)
    finally:
        close_decoders(handles)
    if code != OK:
        raise DamagedJpeg(describe_error(code))
    return out
