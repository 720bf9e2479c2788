"""libturbojpeg gives Pillow's pixels, writes inside its buffer only, and its errors are reported."""

from __future__ import annotations

import ctypes.util
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from beton_tools.jpeg import close_decoders, open_decoders
from beton_tools.jpeg.markers import DAMAGED, OK
from beton_tools.jpeg.turbo import decompress, find_library, open_library

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


def test_the_library_inside_a_wheel_of_ffcv_is_found(tmp_path, monkeypatch):
    """auditwheel puts it into ffcv.libs, under a name with a hash."""
    loaded = (line.split()[-1] for line in Path("/proc/self/maps").read_text("utf-8").splitlines())
    installed = next(path for path in loaded if "libturbojpeg" in path)
    bundled = tmp_path / "ffcv.libs" / "libturbojpeg-0123abcd.so.0.4.0"
    bundled.parent.mkdir()
    shutil.copy(installed, bundled)
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert find_library() == str(bundled)
    assert open_library()._name == str(bundled)
