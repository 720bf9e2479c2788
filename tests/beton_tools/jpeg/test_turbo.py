"""libturbojpeg gives Pillow's pixels, writes inside its buffer only, and its errors are reported."""

from __future__ import annotations

import numpy as np
import pytest

from beton_tools.jpeg import close_decoders, open_decoders
from beton_tools.jpeg.markers import DAMAGED, OK
from beton_tools.jpeg.turbo import decompress

from .conftest import pillow


def turbo(jpeg, height, width):
    handles, src = open_decoders(1), np.frombuffer(jpeg, np.uint8)
    out = np.zeros((height, width, 3), np.uint8)
    code = decompress(handles[0], src.ctypes.data, src.size, out.ctypes.data, height, width)
    close_decoders(handles)
    return code, out


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (17, 4), (16, 16), (33, 65), (250, 400)])
def test_pixels_equal_pillows_in_every_subsampling(jpeg, subsampling, size):
    file = jpeg(*size, subsampling)
    code, pixels = turbo(file, *size)
    assert code == OK
    np.testing.assert_array_equal(pixels, pillow(file))


def test_missing_and_changed_data_are_reported(jpeg):
    file = jpeg(100, 120)
    assert turbo(file[: len(file) // 2], 100, 120)[0] == DAMAGED
    assert turbo(file[:-2] + b"\0\0", 100, 120)[0] == DAMAGED
    assert turbo(b"", 100, 120)[0] == DAMAGED


def test_an_image_larger_than_announced_does_not_write_past_the_buffer(jpeg):
    file, handles = np.frombuffer(jpeg(100, 120), np.uint8), open_decoders(1)
    out = np.full(3 * 50 * 60 + 4096, 7, np.uint8)
    decompress(handles[0], file.ctypes.data, file.size, out.ctypes.data, 50, 60)
    close_decoders(handles)
    assert (out[3 * 50 * 60 :] == 7).all()


def test_handles_can_be_closed_twice():
    handles = open_decoders(3)
    assert len(set(handles.tolist())) == 3
    close_decoders(handles)
    close_decoders(handles)
    assert (handles == 0).all()
