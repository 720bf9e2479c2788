"""Every op equals Pillow's result on every pixel, as timm calls it, although the CPU back end computes many pixels at a time."""

import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba import njit
from PIL import Image, ImageFilter

from fastft.augment import ops, plan
from fastft.augment.ops import affine_matrix, affine_source, inside, sample_bicubic, sample_bilinear, truncate
from fastft.augment.ops_image_affine import UNSURE
from fastft.augment.plan import OP_ID, TIMM_OPS
from fastft.augment.simd import columns_cubic, columns_linear, rows_cubic, rows_linear
from tests.augment.single_ops import (
    FILL,
    RESAMPLE,
    apply_argument,
    apply_op,
    assert_equals_pillow,
    level_argument,
    timm_op,
)

FAST_MAGNITUDES = (0, 0.5, 3.5, 6, 9, 10)
SIGNED = [
    name
    for name in TIMM_OPS
    if level_argument(name, 5, 1, height=9, width=9)[1] != level_argument(name, 5, -1, height=9, width=9)[1]
]
AFFINE = ["Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"]


@pytest.fixture(scope="module")
def crops(photographs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Parts of real photographs, odd and even sides."""
    return [
        photographs["astronaut"][:96, 200:300],
        photographs["coffee"][100:161, 150:247],
        photographs["chelsea"][60:187, 100:141],
    ]


def odd_images() -> dict[str, np.ndarray]:
    """Flat images, single pixels, rows and columns, images too small for a 3 x 3 filter, few levels."""
    random = np.random.default_rng(0)
    shapes = {"pixel": (1, 1), "row": (1, 41), "column": (37, 1), "tiny": (2, 5), "small": (3, 3)}
    images = {name: random.integers(0, 256, (*s, 3), np.uint8) for name, s in shapes.items()}
    images |= {f"flat {v}": np.full((9, 7, 3), v, np.uint8) for v in (0, 1, 127, 128, 254, 255)}
    return images | {"two levels": random.integers(7, 9, (16, 20, 3), np.uint8)}


@pytest.mark.parametrize("name", TIMM_OPS)
def test_an_op_equals_pillows_on_photographs(name, crops):
    for image in crops:
        for magnitude in FAST_MAGNITUDES:
            for sign in (1, -1) if name in SIGNED else (1,):
                ours, pillows = apply_op(name, image, magnitude, sign), timm_op(name, image, magnitude, sign)
                assert_equals_pillow(ours, pillows, f"{name} at {sign * magnitude}")


@pytest.mark.parametrize("name", TIMM_OPS)
def test_an_op_equals_pillows_on_flat_and_tiny_images(name):
    for kind, image in odd_images().items():
        for magnitude in (0, 2.5, 5, 9, 10):
            for sign in (1, -1):
                ours, pillows = apply_op(name, image, magnitude, sign), timm_op(name, image, magnitude, sign)
                assert_equals_pillow(ours, pillows, f"{name} at {sign * magnitude} on {kind}")


@pytest.mark.parametrize("sigma", [0, 0.1, 0.31, 1.0, 1.7, 2.0, 3.3, 9, 40])
def test_gaussian_blur_equals_pillows(sigma, crops):
    for image in [*crops, *odd_images().values()]:
        blurred = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)))
        np.testing.assert_array_equal(apply_argument("GaussianBlur", image, sigma), blurred)


def test_grayscale_equals_pillows_conversion(crops):
    for image in crops:
        grey = np.asarray(Image.fromarray(image).convert("L").convert("RGB"))
        np.testing.assert_array_equal(apply_argument("Grayscale", image), grey)


def test_identity_returns_the_image_and_no_op_writes_to_its_input(crops):
    image = crops[0].copy()
    image.flags.writeable = False
    np.testing.assert_array_equal(apply_argument("Identity", image), crops[0])
    for name in TIMM_OPS:
        apply_op(name, image, 9)
    np.testing.assert_array_equal(image, crops[0])


OPS = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
SHAPES = ((1, 1), (1, 30), (30, 1), (2, 3), (5, 4), (17, 6), (24, 40), (41, 33))


def pillow(op: str, image_HWC: np.ndarray, argument: float, bicubic: bool) -> np.ndarray:
    """The op as timm calls Pillow for it."""
    image, resample = Image.fromarray(image_HWC), RESAMPLE[bicubic]
    if op == "Rotate":
        return np.asarray(image.rotate(argument, resample, fillcolor=FILL))
    matrix = {
        "ShearX": (1, argument, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, argument, 1, 0),
        "TranslateX": (1, 0, argument, 0, 1, 0),
        "TranslateY": (1, 0, 0, 0, 1, argument),
    }[op]
    moved = image.transform(image.size, Image.Transform.AFFINE, matrix, resample, fillcolor=FILL)
    return np.asarray(moved)


def random_image(random: np.random.Generator) -> np.ndarray:
    """Noise of all or of few values, flat in one part."""
    height, width = SHAPES[random.integers(len(SHAPES))]
    low, high = ((0, 256), (0, 2), (254, 256), (100, 103))[random.integers(4)]
    image = random.integers(low, high, (height, width, 3)).astype(np.uint8)
    image[random.integers(height) :, random.integers(width) :] = random.integers(0, 256, 3)
    return image


def random_argument(op: str, random: np.random.Generator) -> float:
    """Any argument, or one that puts places on whole pixels, where the last digit decides."""
    kind = random.integers(5)
    if op == "Rotate":
        special = (90.0 * random.integers(-4, 5), 1e-9, 1e-13, 45.0)[random.integers(4)]
        return float(special if kind == 0 else random.uniform(-400, 400))
    if op.startswith("Translate"):
        whole = float(random.integers(-40, 41))
        near = np.nextafter(whole, random.choice([-99.0, 99.0]))
        return float((whole, near, whole + 0.5)[kind] if kind < 3 else random.uniform(-50, 50))
    whole = random.integers(-9, 10) / (random.integers(40) + 0.5)  # a whole number of pixels in some row
    return float((whole, 0.1 * whole, 0.0)[kind] if kind < 3 else random.uniform(-2, 2))


@njit
def pixel_by_pixel(source, height, width, matrix, fill, bicubic, target):
    """The definition: one channel of one pixel at a time."""
    for i in range(height):
        for j in range(width):
            x, y = affine_source(matrix, i, j)
            for c in range(3):
                to = 3 * (i * width + j) + c
                if not inside(x, y, height, width):
                    target[to] = fill[c]
                elif bicubic:
                    target[to] = truncate(sample_bicubic(source, height, width, x, y, c))
                else:
                    target[to] = truncate(sample_bilinear(source, height, width, x, y, c))


@pytest.mark.parametrize("bicubic", [True, False])
@pytest.mark.parametrize("op", OPS)
def test_the_vectorised_result_equals_the_pixel_by_pixel_result_and_pillows(op, bicubic):
    random = np.random.default_rng(7)
    reach = {"Rotate": 400.0, "ShearX": 2.0, "ShearY": 2.0}.get(op, 50.0)
    for _ in range(200):
        image, argument = random_image(random), random_argument(op, random)
        height, width = image.shape[:2]
        expected = np.empty_like(image).reshape(-1)
        matrix = affine_matrix(OP_ID[op], argument, height, width)
        pixel_by_pixel(image.reshape(-1), height, width, matrix, np.array(FILL, np.uint8), bicubic, expected)
        ours = apply_argument(op, image, argument, bicubic=bicubic).reshape(-1)
        np.testing.assert_array_equal(ours, expected, f"{op} by {argument!r} of {image.shape}")
        argument = random.uniform(-reach, reach)
        ours, theirs = (apply_argument(op, image, argument, bicubic=bicubic), pillow(op, image, argument, bicubic))
        np.testing.assert_array_equal(ours, theirs, f"{op} by {argument!r} of {image.shape}")


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("argument", [1e300, -1e300, float("inf"), float("nan")])
def test_an_out_of_range_argument_gives_the_fill_colour_or_valid_pixels(op, argument):
    image = np.full((9, 8, 3), 200, np.uint8)
    values = {tuple(pixel) for pixel in apply_argument(op, image, argument).reshape(-1, 3).tolist()}
    assert values <= {FILL, (200, 200, 200)}


def test_no_op_reads_or_writes_out_of_bounds():
    command = [sys.executable, "-m", "tests.augment.run_ops_guarded"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, f"{done.returncode} {done.stderr[-2000:]}"


@njit
def errors(pixels, places, bicubic, out):
    """out = |float32 - float64| of the pixels at places between the inner four of 4 x 4."""
    value = np.zeros(4, np.float32)
    for k in range(len(places)):
        tx, ty = places[k]
        at = 48 * k
        window = pixels[at : at + 48]
        if bicubic:
            rows_cubic(columns_cubic(pixels, at, 12, np.float32(ty)), np.float32(tx), value, 0)
        else:
            rows_linear(columns_linear(pixels, at, 12, np.float32(ty)), np.float32(tx), value, 0)
        for c in range(3):
            x, y = 1.5 + tx, 1.5 + ty
            if bicubic:
                exact = sample_bicubic(window, 4, 4, x, y, c)
            else:
                exact = sample_bilinear(window, 4, 4, x, y, c)
            out[k, c] = abs(value[c] - exact)


@pytest.mark.slow
@pytest.mark.parametrize("bicubic", [True, False])
def test_float32_is_nearer_to_float64_than_the_limit_of_rotate(bicubic):
    random, count = np.random.default_rng(1), 200_000
    pixels = random.choice([0, 255], (count, 48)).astype(np.uint8)  # the greatest sums
    pixels[::2] = random.integers(0, 256, (len(pixels[::2]), 48))
    places = random.random((count, 2))
    places[::5] = np.nextafter(1.0, 0.0)
    places[1::5, 0] = 0.0
    out = np.empty((count, 3))
    errors(np.append(pixels.reshape(-1), np.zeros(16, np.uint8)), places, bicubic, out)
    assert 0 < out.max() < UNSURE / 2
    assert UNSURE < 0.01  # or the pixels that float64 computes again cost more than they save


def uncompiled(table: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names of ops.py as they are with this plan.py, uncompiled."""
    monkeypatch.setitem(sys.modules, plan.__name__, table)
    names: dict[str, Any] = {}
    exec(Path(ops.__file__).read_text().replace("@njit()\n", ""), names)
    return names


def results_by_name(table: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the ops of three kinds give, by their names."""
    names, found = uncompiled(table, monkeypatch), {}
    statistics = np.arange(10, 10 + ops.STATISTICS).astype(np.int32)
    for number, op in enumerate(table.OPS):
        if names["is_point"](number):
            found[op.name] = [names["point_entry"](number, value, 1.5, 100) for value in range(256)]
        elif names["is_table"](number):
            found[op.name] = [names["table_entry"](number, i, 0.0, statistics) for i in range(256)]
        elif names["is_affine"](number):
            found[op.name] = names["affine_matrix"](number, 1.5, 5, 6)
    return found


def test_names_and_arithmetic_stay_together_when_rows_of_the_table_are_swapped(monkeypatch):
    swapped = types.ModuleType("plan")
    vars(swapped).update(vars(plan))
    swapped.OPS = (plan.OPS[0], *plan.OPS[:0:-1])
    swapped.OP_ID = {op.name: number for number, op in enumerate(swapped.OPS)}
    before, after = (results_by_name(table, monkeypatch) for table in (plan, swapped))
    assert after == before and len(before) == 13 and swapped.OP_ID["ShearX"] != plan.OP_ID["ShearX"]
