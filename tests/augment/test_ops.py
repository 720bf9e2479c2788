"""Every op equals Pillow's result on every pixel, as timm calls it."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from beton_tools.base.errors import UserError
from fastft.augment.levels import TIMM_OPS, level_argument
from tests.augment.pillow_oracle import timm_op
from tests.augment.single_ops import apply_argument, apply_op

MAGNITUDES = [n / 2 for n in range(21)]
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
                np.testing.assert_array_equal(ours, pillows, f"{name} at {sign * magnitude}")


@pytest.mark.parametrize("name", TIMM_OPS)
def test_an_op_equals_pillows_on_flat_and_tiny_images(name):
    for kind, image in odd_images().items():
        for magnitude in (0, 2.5, 5, 9, 10):
            for sign in (1, -1):
                ours, pillows = apply_op(name, image, magnitude, sign), timm_op(name, image, magnitude, sign)
                np.testing.assert_array_equal(ours, pillows, f"{name} at {sign * magnitude} on {kind}")


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM_OPS)
def test_an_op_equals_pillows_on_whole_photographs(name, photographs):
    for image in photographs.values():
        for magnitude in MAGNITUDES:
            for sign in (1, -1):
                ours, pillows = apply_op(name, image, magnitude, sign), timm_op(name, image, magnitude, sign)
                np.testing.assert_array_equal(ours, pillows, f"{name} at {sign * magnitude}")


@pytest.mark.parametrize("sigma", [0, 0.1, 0.31, 1.0, 1.7, 2.0, 3.3, 9, 40])
def test_gaussian_blur_equals_pillows(sigma, crops):
    for image in [*crops, *odd_images().values()]:
        blurred = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)))
        np.testing.assert_array_equal(apply_argument("GaussianBlur", image, sigma), blurred)


def test_grayscale_equals_pillows_conversion(crops):
    for image in crops:
        grey = np.asarray(Image.fromarray(image).convert("L").convert("RGB"))
        np.testing.assert_array_equal(apply_argument("Grayscale", image), grey)


def test_posterising_to_no_bits_is_black_and_never_raises(crops):
    assert not apply_op("PosterizeIncreasing", crops[0], 10).any()
    assert not apply_op("PosterizeIncreasing", crops[0], 11).any()


def test_identity_returns_the_image_and_no_op_writes_to_its_input(crops):
    image = crops[0].copy()
    image.flags.writeable = False
    np.testing.assert_array_equal(apply_argument("Identity", image), crops[0])
    for name in TIMM_OPS:
        apply_op(name, image, 9)
    np.testing.assert_array_equal(image, crops[0])


@pytest.mark.parametrize(
    "call", [lambda image: apply_op("Colour", image, 5), lambda image: apply_op("Color", image, -1)]
)
def test_a_bad_op_or_magnitude_is_a_one_line_error(call, crops: list[np.ndarray]) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError) as refusal:
        call(crops[0])
    assert "\n" not in str(refusal.value)
