"""The resize equals Pillow's on every pixel, whatever the box, the size, the window and the region given."""

import numpy as np
import pytest

from fastft.augment.draw import QUARTER_TURNS
from fastft.augment.plan import PLAN_DTYPE
from fastft.augment.resize import (
    OK,
    REGION_TOO_SMALL,
    SCRATCH_TOO_SMALL,
    resize_region,
    resize_scratch_size,
    source_region,
    turn,
)
from tests.augment.single_ops import needs_pillow_13, pillow_resized_crop


def run(image: np.ndarray, row: np.void, size: int, region: tuple[int, ...], spare: int = 0) -> tuple[int, np.ndarray]:
    """resize_region on exactly these pixels of the image, in a buffer with nothing beyond them."""
    y, x, h, w = region
    pixels = np.ascontiguousarray(image[y : y + h, x : x + w]).reshape(-1)
    scratch = np.empty(resize_scratch_size(*row["crop"][2:], size) + spare, np.uint8)
    out = np.empty(size * size * 3, np.uint8)
    crop, resize, window = (tuple(int(v) for v in row[name]) for name in ("crop", "resize", "window"))
    flip, bicubic = bool(row["flip"]), bool(row["bicubic"])
    status = resize_region(pixels, w * 3, region, crop, resize, window, flip, bicubic, size, scratch, out)
    return status, out.reshape(size, size, 3)


def plan_row(crop: tuple, resize: tuple, window: tuple, flip: bool = False, bicubic: bool = True) -> np.void:
    row = np.zeros(1, PLAN_DTYPE)[0]
    row["crop"], row["resize"], row["window"] = crop, resize, window
    row["flip"], row["bicubic"] = flip, bicubic
    return row


def resized_crop(image: np.ndarray, box: tuple, size: int, flip: bool = False, *, bicubic: bool = True) -> np.ndarray:
    status, out = run(image, plan_row(box, (size, size), (0, 0), flip, bicubic), size, box)
    assert status == OK
    return out


def expected(image: np.ndarray, row: np.void, size: int) -> np.ndarray:
    """Pillow's resize, torchvision's reflect padding, then the window and the flip."""
    resized = pillow_resized_crop(image, tuple(row["crop"]), tuple(row["resize"]), bool(row["bicubic"]))
    top, left = (int(v) for v in row["window"])
    below, right = (top + size - resized.shape[0], left + size - resized.shape[1])
    pads = [(max(-top, 0), max(below, 0)), (max(-left, 0), max(right, 0)), (0, 0)]
    padded = np.pad(resized, pads, mode="reflect")
    top, left = max(top, 0), max(left, 0)
    window = padded[top : top + size, left : left + size]
    return window[:, ::-1] if row["flip"] else window


@needs_pillow_13
@pytest.mark.parametrize("bicubic", [True, False])
@pytest.mark.parametrize("size", [1, 16, 97, 224])
def test_a_resized_crop_equals_pillows(size, bicubic, photographs):
    random = np.random.default_rng(size)
    for n in range(15):
        image = photographs[("astronaut", "coffee", "chelsea")[n % 3]]
        h, w = (int(random.integers(1, n + 1)) for n in image.shape[:2])
        y, x = (int(random.integers(0, n - m + 1)) for n, m in zip(image.shape, (h, w), strict=False))
        ours = resized_crop(image, (y, x, h, w), size, bool(n & 1), bicubic=bicubic)
        pillows = pillow_resized_crop(image, (y, x, h, w), (size, size), bicubic)
        np.testing.assert_array_equal(ours[:, ::-1] if n & 1 else ours, pillows, f"box {(y, x, h, w)}")


@needs_pillow_13
@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 300), (300, 1), (2, 3), (5, 400), (400, 5), (224, 224), (223, 225), (225, 100), (300, 230)]
)
def test_extreme_shapes_equal_pillows(shape, photographs):
    image = photographs["coffee"][: shape[0], : shape[1]]
    for size in (1, 20, 224):
        ours = resized_crop(image, (0, 0, *shape), size)
        np.testing.assert_array_equal(ours, pillow_resized_crop(image, (0, 0, *shape), (size, size)))


@needs_pillow_13
@pytest.mark.parametrize("bicubic", [True, False])
def test_a_window_of_the_resized_image_needs_only_its_source_region(bicubic, photographs):
    image, size = photographs["coffee"], 64
    cases = [
        ((0, 0, 400, 600), (64, 96), (-4, -4), False),
        ((0, 0, 400, 600), (64, 96), (4, 36), True),
        ((10, 20, 380, 550), (80, 115), (3, 20), False),
        ((10, 20, 380, 100), (300, 70), (230, 2), True),
        ((0, 0, 30, 40), (64, 85), (0, 21), False),
        ((7, 9, 100, 100), (64, 64), (0, 0), True),
    ]
    for crop, resize, window, flip in cases:
        row = plan_row(crop, resize, window, flip, bicubic)
        region = tuple(int(v) for v in source_region(row, size))
        status, ours = run(image, row, size, region)
        assert status == OK
        np.testing.assert_array_equal(ours, expected(image, row, size), f"{crop} to {resize}, window {window}")
        whole, same = run(image, row, size, crop)
        assert whole == OK and (same == ours).all()


def test_a_crop_of_the_outputs_size_is_copied_from_a_larger_region(photographs):
    image, row = photographs["coffee"], plan_row((10, 20, 32, 32), (32, 32), (0, 0))
    status, ours = run(image, row, 32, (0, 0, 60, 70), spare=1 << 16)
    assert status == OK
    np.testing.assert_array_equal(ours, image[10:42, 20:52])


def test_a_region_or_scratch_that_is_too_small_is_reported(photographs):
    row = plan_row((0, 0, 200, 200), (64, 64), (0, 0))
    for region in [(1, 0, 199, 200), (0, 1, 200, 199), (0, 0, 199, 200), (0, 0, 200, 199)]:
        assert run(photographs["astronaut"], row, 64, region)[0] == REGION_TOO_SMALL
    assert run(photographs["astronaut"], row, 64, (0, 0, 200, 200), spare=-100_000)[0] == SCRATCH_TOO_SMALL


def test_quarter_turns_are_numpys_and_exact(photographs):
    image = np.ascontiguousarray(photographs["astronaut"][:65, :65])
    for quarters, flip in enumerate(QUARTER_TURNS):
        target = np.empty(image.size, np.uint8)
        turn(image.reshape(-1), flip, 65, target)
        np.testing.assert_array_equal(target.reshape(image.shape), np.rot90(image, quarters))
