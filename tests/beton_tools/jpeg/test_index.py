"""The index gives the restart segments, and a wrong index does no harm."""

from __future__ import annotations

import numpy as np
import pytest

from beton_tools.jpeg import JpegError, add_index, index
from beton_tools.jpeg.markers import OK, scan_header

from .conftest import pillow


def entries(file):
    """(offset of the first entry, number of entries of two bytes)."""
    head = scan_header(np.frombuffer(file, np.uint8))
    assert file[head.index_at + 7] == 2
    return head.index_at + 8, (head.index_end - head.index_at - 8) // 2


def test_segments_follow_each_other_up_to_the_end_of_the_image(jpeg, subsampling):
    file = add_index(jpeg(100, 160, subsampling))
    segments = index.read(file)
    flat = segments.reshape(-1, 2)
    numbers = [file[end + 1] for _, end in flat]
    assert flat[0, 0] == scan_header(np.frombuffer(file, np.uint8)).scan_at
    assert (flat[1:, 0] == flat[:-1, 1] + 2).all()
    assert numbers == [0xD0 + k % 8 for k in range(len(flat) - 1)] + [0xD9]
    assert flat[-1, 1] == len(file) - 2


def test_the_interval_divides_the_row_and_a_wide_image_has_several_segments_per_row(jpeg, subsampling):
    file = add_index(jpeg(250, 384, subsampling))
    head = scan_header(np.frombuffer(file, np.uint8))
    rows, columns = index.mcu_grid(head)
    assert columns % head.restart_interval == 0
    assert index.read(file).shape == (rows, columns // head.restart_interval, 2)
    assert head.restart_interval < columns


def test_long_segments_get_wide_entries():
    lengths = np.array([70_000, 3, 2])
    assert index.write(lengths)[11:] == b"\4" + lengths.astype(">u4").tobytes()
    assert index.write(lengths[1:])[11:] == b"\2" + lengths[1:].astype(">u2").tobytes()


def test_a_file_without_index_has_none(jpeg):
    assert index.read(jpeg(50, 50)) is None


@pytest.mark.parametrize("change", [1, -1, 255, 30_000])
def test_every_wrong_entry_is_detected_and_the_pixels_are_right(jpeg, decode, change):
    file = add_index(jpeg(64, 96), 2)
    whole, (at, count) = pillow(file), entries(file)
    for k in range(count):
        false = bytearray(file)
        value = int.from_bytes(file[at + 2 * k : at + 2 * k + 2], "big") + change
        false[at + 2 * k : at + 2 * k + 2] = (value % 65536).to_bytes(2, "big")
        with pytest.raises(JpegError, match="does not match"):
            index.read(bytes(false))
        code, pixels = decode(bytes(false), 20, 40, 30, 30)
        assert code == OK
        np.testing.assert_array_equal(pixels, whole[20:50, 40:70])


@pytest.mark.parametrize("offset", [-1, 7, 8])
def test_an_index_of_the_wrong_shape_is_not_used(jpeg, decode, offset):
    file = add_index(jpeg(64, 96), 2)
    head = scan_header(np.frombuffer(file, np.uint8))
    false = bytearray(file)
    false[head.index_at + 7] ^= 6  # entries of 4 bytes
    if offset < 0:  # a restart interval that does not divide the row
        false[head.index_at + 7] ^= 6
        false[head.dri_at + 5] = 5
    code, _ = decode(bytes(false), 20, 40, 30, 30)
    assert code == OK if offset > 0 else code != OK  # with a false interval the whole image is damaged, too
    with pytest.raises(JpegError):
        index.read(bytes(false))
