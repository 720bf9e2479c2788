"""Erased pixels are a function of the plan alone, normally distributed, and stored to the nearest half."""

import numpy as np
import pytest
import torch

from fastft.augment.erase import BFLOAT16, FLOAT16, FLOAT32, bfloat16_bits, erase, float16_bits
from fastft.augment.plan import PLAN_DTYPE
from fastft.recipe.constants import ERASE_MODES

SIZE = 224
STORAGE = {FLOAT32: np.float32, FLOAT16: np.uint16, BFLOAT16: np.uint16}


def erased(mode: str, boxes: list[tuple[int, int, int, int]], key: int = 7, dtype: int = FLOAT32) -> np.ndarray:
    """An output of 9s in which these boxes are erased."""
    row = np.zeros(1, PLAN_DTYPE)[0]
    row["erase"][: len(boxes)] = boxes
    row["erase_mode"], row["noise_key"] = ERASE_MODES.index(mode), key
    out = np.full(SIZE * SIZE * 3, 9, STORAGE[dtype])
    erase(row, SIZE, out, dtype)
    return out.reshape(SIZE, SIZE, 3)


@pytest.mark.parametrize("mode", ERASE_MODES)
def test_only_pixels_inside_the_boxes_change(mode):
    inside = np.zeros((SIZE, SIZE), bool)
    inside[3:13, 5:25] = inside[200:224, 100:224] = True
    out = erased(mode, [(3, 5, 10, 20), (200, 100, 24, 124)])
    assert (out[~inside] == 9).all() and (out[inside] != 9).all()


def test_erase_modes_are_zero_one_colour_per_box_and_noise_per_pixel():
    boxes = [(0, 0, 10, 10), (50, 50, 10, 10)]
    assert not erased("const", boxes)[:10, :10].any()
    colours = erased("rand", boxes)
    first, second = colours[:10, :10], colours[50:60, 50:60]
    assert (first == first[0, 0]).all() and (second == second[0, 0]).all()
    assert len({*first[0, 0], *second[0, 0]}) == 6
    pixels = erased("pixel", boxes)[:10, :10]
    assert len(np.unique(pixels)) > 250


def test_the_noise_of_a_pixel_depends_on_key_and_position_only():
    whole = erased("pixel", [(0, 0, SIZE, SIZE)])
    part = erased("pixel", [(30, 40, 50, 60)])
    np.testing.assert_array_equal(part[30:80, 40:100], whole[30:80, 40:100])
    assert (erased("pixel", [(0, 0, SIZE, SIZE)], key=8) != whole).mean() > 0.99


def test_conversion_to_half_types_equals_torch_for_every_kind_of_float():
    random = np.random.default_rng(0)
    values = np.concatenate(
        [
            random.normal(0, 1, 2000) * 10.0 ** random.integers(-9, 4, 2000),
            [0.0, -0.0, 2.0**-14, 2.0**-15, 2.0**-24, 2.0**-25, 1.5 * 2.0**-25, 65504.0, -65504.0],
            1 + (np.arange(64) + 0.5) * 2.0**-10,  # ties of float16
            1 + (np.arange(64) + 0.5) * 2.0**-7,  # ties of bfloat16
        ]
    ).astype(np.float32)
    tensor = torch.from_numpy(values)
    for bits, kind in ((float16_bits, torch.float16), (bfloat16_bits, torch.bfloat16)):
        ours = np.array([bits(v) for v in values], np.uint16).view(np.int16)
        np.testing.assert_array_equal(ours, tensor.to(kind).view(torch.int16).numpy())
