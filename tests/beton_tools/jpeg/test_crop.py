"""libturbojpeg gives Pillow's pixels; a region equals that of the whole image and needs memory for its own size only."""

import ctypes.util
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from beton_tools.jpeg import JpegError, add_index, close_decoders, decode_rgb, open_decoders
from beton_tools.jpeg.markers import BAD_REGION, DAMAGED, OK, SMALL_SCRATCH
from beton_tools.jpeg.turbo import decompress, find_library, open_library

from .conftest import pillow


def spans(length, most=None):
    """Every (start, size) within a length; sizes up to `most`."""
    return [(a, b - a) for a in range(length) for b in range(a + 1, length + 1) if most is None or b - a <= most]


@pytest.mark.parametrize("extent", [33, 37])  # the last MCU holds 1 and 5 pixels of 16
def test_every_horizontal_and_vertical_span_of_a_small_image_is_exact(jpeg, decode, subsampling, extent):
    across, down = add_index(jpeg(20, extent, subsampling), 1), add_index(jpeg(extent, 20, subsampling), 1)
    whole_across, whole_down = pillow(across), pillow(down)
    for start, size in spans(extent):
        for other, length in ((0, 20), (7, 3), (15, 2), (19, 1)):
            code, pixels = decode(across, other, start, length, size)
            assert code == OK
            np.testing.assert_array_equal(pixels, whole_across[other : other + length, start : start + size])
            code, pixels = decode(down, start, other, size, length)
            assert code == OK
            np.testing.assert_array_equal(pixels, whole_down[start : start + size, other : other + length])


def test_random_regions_of_images_of_any_size_are_exact(jpeg, decode, subsampling):
    rng = np.random.default_rng(0)
    for _ in range(60):
        height, width = (int(2 ** rng.uniform(0, 7.6)) for _ in range(2))
        file = add_index(jpeg(height, width, subsampling, int(rng.integers(30, 100))))
        whole = pillow(file)
        for _ in range(20):
            h, w = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
            y, x = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
            code, pixels = decode(file, y, x, h, w)
            assert code == OK
            np.testing.assert_array_equal(pixels, whole[y : y + h, x : x + w])


def test_files_without_index_give_the_same_region(jpeg, decode):
    file = jpeg(100, 120)
    code, pixels = decode(file, 11, 13, 50, 60)
    assert code == OK
    np.testing.assert_array_equal(pixels, pillow(file)[11:61, 13:73])


def test_a_crop_needs_memory_for_its_own_size_only(jpeg, decode, subsampling):
    file = add_index(jpeg(250, 400, subsampling))
    code, pixels = decode(file, 120, 200, 20, 20, scratch=len(file) + 3 * 250 * 400 // 2)
    assert code == OK  # without the index, half of the pixels would not have been enough
    np.testing.assert_array_equal(pixels, pillow(file)[120:140, 200:220])
    assert decode(jpeg(250, 400, subsampling), 120, 200, 20, 20, scratch=3 * 250 * 400 // 2)[0] == SMALL_SCRATCH


@pytest.mark.parametrize(
    "region", [(-1, 0, 5, 5), (0, -1, 5, 5), (0, 0, 0, 5), (0, 0, 5, 0), (90, 0, 11, 5), (0, 90, 5, 31)]
)
def test_regions_outside_of_the_image_are_refused(jpeg, decode, region):
    assert decode(add_index(jpeg(100, 120)), *region)[0] == BAD_REGION


def test_decode_rgb_returns_pixels_or_raises(jpeg):
    file = add_index(jpeg(100, 120))
    np.testing.assert_array_equal(decode_rgb(file), pillow(file))
    np.testing.assert_array_equal(decode_rgb(file, (5, 6, 7, 8)), pillow(file)[5:12, 6:14])
    with pytest.raises(JpegError, match="outside the image"):
        decode_rgb(file, (95, 0, 10, 10))


def turbo(jpeg, height, width):
    handles, src = open_decoders(1), np.frombuffer(jpeg, np.uint8)
    out = np.zeros((height, width, 3), np.uint8)
    code = decompress(handles[0], src.ctypes.data, src.size, out.ctypes.data, height, width)
    close_decoders(handles)
    return code, out


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
