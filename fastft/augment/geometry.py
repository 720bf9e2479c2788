"""Geometry of a plan: the size after a resize, and the part of the source that the output depends on."""

from __future__ import annotations

import numpy as np
from numba import njit

from fastft.augment.resize import filter_support


@njit(cache=True)
def resized_shape(height, width, short_side):
    """(h, w) with the shorter side `short_side` and the longer truncated, as torchvision's Resize."""
    if height <= width:
        return short_side, int(short_side * width / height)
    return int(short_side * height / width), short_side


@njit(cache=True)
def _touched(window, size, resized):
    """First and last pixel of the resized axis that a window of `size` shows, reflections included."""
    low, high = window, window + size - 1
    first, last = max(low, 0), min(high, resized - 1)
    if low < 0:
        last = max(last, min(-low, resized - 1))
    if high >= resized:
        first = min(first, max(2 * (resized - 1) - high, 0))
    return first, last


@njit(cache=True)
def _axis_region(crop, resized, window, size, bicubic):
    """(begin, end) of the crop's pixels under the filter taps of what the window shows."""
    first, last = _touched(window, size, resized)
    scale = crop / resized
    support = filter_support(crop, resized, bicubic)
    begin = max(int((first + 0.5) * scale - support + 0.5), 0)
    end = min(int((last + 0.5) * scale + support + 0.5), crop)
    return begin, end


@njit(cache=True)
def source_region(row, size):
    """(y, x, h, w) of the source pixels that a plan row's output of size x size touches; inside its crop."""
    y0, y1 = _axis_region(row.crop[2], row.resize[0], row.window[0], size, row.bicubic)
    x0, x1 = _axis_region(row.crop[3], row.resize[1], row.window[1], size, row.bicubic)
    return row.crop[0] + y0, row.crop[1] + x0, y1 - y0, x1 - x0


@njit(cache=True)
def _fill_regions(plan, size, regions):
    for i in range(len(plan)):
        y, x, h, w = source_region(plan[i], size)
        regions[i, 0], regions[i, 1], regions[i, 2], regions[i, 3] = y, x, h, w


def source_regions(plan: np.ndarray, size: int) -> np.ndarray:
    """`source_region` of every row: (B, 4) int32 of y, x, h, w."""
    regions = np.empty((len(plan), 4), np.int32)
    _fill_regions(plan, size, regions)
    return regions
