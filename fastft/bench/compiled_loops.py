"""Compiled loops of the benchmarks: many images per call, so that no contender pays for Python."""

import numpy as np
from numba import njit

from beton_tools.jpeg import decode_region
from beton_tools.jpeg.turbo import decompress
from fastft.augment.cpu import augment_image


@njit(cache=True, nogil=True)
def decode_all(
    data: np.ndarray, ends: np.ndarray, regions: np.ndarray, offsets: np.ndarray,
    packed: np.ndarray, scratch: np.ndarray, handle: int,
) -> int:  # fmt: skip
    """Decode a region of every image into the packed buffer; returns the number of failures."""
    failures = 0
    for k in range(len(regions)):
        y, x, h, w = regions[k, 0], regions[k, 1], regions[k, 2], regions[k, 3]
        out = packed[offsets[k] : offsets[k] + 3 * h * w]
        failures += decode_region(data[ends[k] : ends[k + 1]], y, x, h, w, out, scratch, handle) != 0
    return failures


@njit(cache=True, nogil=True)
def decompress_all(
    data: np.ndarray, ends: np.ndarray, heights: np.ndarray, widths: np.ndarray, pixels: np.ndarray, handle: int
) -> int:  # fmt: skip
    """Decode every image whole, by libjpeg-turbo alone; returns the number of failures."""
    failures = 0
    for k in range(len(heights)):
        jpeg = data[ends[k] : ends[k + 1]]
        status = decompress(handle, jpeg.ctypes.data, jpeg.size, pixels.ctypes.data, heights[k], widths[k])
        failures += status != 0
    return failures


@njit(cache=True, nogil=True)
def decode_and_augment(data, ends, regions, plan, finish, scratch, handle, out):
    """Decode and augment image by image according to the plan; returns the number of failures."""
    pixels, decode_scratch, augment_scratch = scratch
    failures = 0
    for k in range(len(plan)):
        y, x, h, w = regions[k]
        status = decode_region(data[ends[k] : ends[k + 1]], y, x, h, w, pixels, decode_scratch, handle)
        if status == 0:
            region, into = (y, x, h, w), out[k % len(out)]
            status = augment_image(pixels, 3 * w, region, plan[k], finish, augment_scratch, into)
        failures += status != 0
    return failures


@njit(nogil=True)
def memory_read(number: int, storage: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Like FFCV's memory managers: the bytes at a data_ptr."""
    data, ends = storage
    return data[ends[number] : ends[number + 1]]
