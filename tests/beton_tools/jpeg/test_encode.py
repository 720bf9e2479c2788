"""Encoded images have an index; decoded files equal those of the folder loaders."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from beton_tools.jpeg import JpegError, decode_image, encode_indexed, index, parse

from .conftest import pillow


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_encoded_images_are_indexed_and_look_like_the_original(photographs, subsampling):
    image = photographs["chelsea"]
    file = encode_indexed(image, 95, subsampling)
    assert parse(file).subsampling == subsampling
    assert index.read(file) is not None
    target = image if subsampling != "gray" else np.asarray(Image.fromarray(image).convert("L"))[..., None]
    assert np.abs(pillow(file).astype(int) - target).mean() < 3


def test_grey_arrays_and_single_pixels_are_encoded(photographs):
    grey = np.asarray(Image.fromarray(photographs["chelsea"]).convert("L"))
    assert parse(encode_indexed(grey)).subsampling == "gray"
    assert pillow(encode_indexed(np.full((1, 1, 3), 200, np.uint8))).tolist() == [[[200, 200, 200]]]


@pytest.mark.parametrize(
    ("image", "options", "why"),
    [
        (np.zeros((4, 4, 4), np.uint8), {}, "cannot encode"),
        (np.zeros((4, 4, 3), np.float32), {}, "cannot encode"),
        (np.zeros((0, 4, 3), np.uint8), {}, "each side"),
        (np.zeros((65536, 1, 3), np.uint8), {}, "each side"),
        (np.zeros((4, 4, 3), np.uint8), {"quality": 0}, "quality"),
        (np.zeros((4, 4, 3), np.uint8), {"subsampling": "4:3:2"}, "subsampling"),
    ],
)
def test_invalid_arguments_are_refused(image, options, why):
    with pytest.raises(JpegError, match=why):
        encode_indexed(image, **options)


def test_every_kind_of_file_equals_pillows_conversion_to_rgb(photographs):
    image = Image.fromarray(photographs["coffee"][:60, :80])
    exif = Image.Exif()
    exif[0x0112] = 6
    for file in (
        saved(image, "PNG"),
        saved(image.convert("RGBA"), "PNG"),
        saved(image.convert("P"), "GIF"),
        saved(image.convert("L"), "PNG"),
        saved(image.convert("CMYK"), "JPEG"),
        saved(image, "JPEG", progressive=True, exif=exif),
    ):
        np.testing.assert_array_equal(decode_image(file), pillow(file))
        assert decode_image(file).shape == (60, 80, 3)


def test_unreadable_files_are_refused_in_one_line(photographs):
    file = saved(Image.fromarray(photographs["coffee"]), "JPEG")
    for broken in (b"", b"not an image", file[: len(file) // 2], saved(Image.new("L", (9, 9)), "PNG")[:40]):
        with pytest.raises(JpegError, match=r"not a readable image|not an image of a known format") as error:
            decode_image(broken)
        assert "\n" not in str(error.value)
        assert "0x" not in str(error.value)
