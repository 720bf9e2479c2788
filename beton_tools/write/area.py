"""Area interpolation with the same pixels as OpenCV's `INTER_AREA`, which FFCV's writer uses for resizing."""

import numpy as np

from beton_tools.base.jit import njit


@njit(nogil=True)
def shrink_by_area(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (H, W, 3) u8 to (height, width, 3), where neither side becomes larger.

    Sums are made in OpenCV's order in float32, or in integers where both scales are whole numbers.
    """
    out = np.empty((height, width, 3), np.uint8)
    down, across = _scale(pixels.shape[0], height), _scale(pixels.shape[1], width)
    if down == np.floor(down) and across == np.floor(across):
        _mean_of_blocks(pixels, int(down), int(across), out)
        return out
    tops, row_weights = _cells(pixels.shape[0], height, down)
    lefts, weights = _cells(pixels.shape[1], width, across)
    sums = np.empty((width, 3), np.float32)
    for y in range(height):
        sums[:] = 0
        for j in range(row_weights.shape[1]):
            if row_weights[y, j] > 0:
                _add_row(pixels[tops[y] + j], lefts, weights, row_weights[y, j], sums)
        for x in range(width):
            for channel in range(3):
                out[y, x, channel] = np.uint8(np.rint(sums[x, channel]))
    return out


@njit(nogil=True)
def _scale(source: int, target: int) -> float:
    scale = 1 / (target / source)
    return np.round(scale) if abs(scale - np.round(scale)) < np.finfo(np.float64).eps else scale


@njit(nogil=True)
def _cells(source: int, target: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the source positions that each output position covers.

    Returns:
        The first source position (int64) for each output position, and the source positions' weights (float32, 0 behind
        the last one).
    """
    first = np.empty(target, np.int64)
    weights = np.zeros((target, int(scale) + 3), np.float32)
    for i in range(target):
        begin, end = i * scale, i * scale + scale
        size = min(scale, source - begin)
        whole_end = min(int(np.floor(end)), source - 1)
        whole = first[i] = min(int(np.ceil(begin)), whole_end)
        count = 0
        if whole - begin > 1e-3:  # OpenCV leaves out smaller parts of pixels
            first[i] -= 1
            weights[i, 0] = (whole - begin) / size
            count = 1
        weights[i, count : count + whole_end - whole] = 1 / size
        if end - whole_end > 1e-3:
            weights[i, count + whole_end - whole] = min(end - whole_end, 1.0, size) / size
    return first, weights


@njit(nogil=True)
def _add_row(row: np.ndarray, lefts: np.ndarray, weights: np.ndarray, row_weight: float, sums: np.ndarray) -> None:
    """Resize one source row (W, 3) to the output's width, multiply it by row_weight, and add it to sums (width, 3)."""
    for x in range(len(sums)):
        red = green = blue = np.float32(0)
        for i in range(weights.shape[1]):
            weight = weights[x, i]
            if weight == 0:
                break
            red += np.float32(row[lefts[x] + i, 0]) * weight
            green += np.float32(row[lefts[x] + i, 1]) * weight
            blue += np.float32(row[lefts[x] + i, 2]) * weight
        sums[x, 0] += row_weight * red
        sums[x, 1] += row_weight * green
        sums[x, 2] += row_weight * blue


@njit(nogil=True)
def _mean_of_blocks(pixels: np.ndarray, down: int, across: int, out: np.ndarray) -> None:
    """Average blocks of down * across pixels."""
    inverse = np.float32(1) / np.float32(down * across)
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            red = green = blue = 0
            for j in range(y * down, y * down + down):
                for i in range(x * across, x * across + across):
                    red += pixels[j, i, 0]
                    green += pixels[j, i, 1]
                    blue += pixels[j, i, 2]
            for channel, total in enumerate((red, green, blue)):
                if down == 2 and across == 2:
                    out[y, x, channel] = (total + 2) >> 2  # OpenCV rounds halves up here, to even elsewhere
                else:
                    out[y, x, channel] = np.uint8(np.rint(np.float32(total) * inverse))
