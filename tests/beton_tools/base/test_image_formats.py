"""Images of the listed formats are opened; no other reader of Pillow is started."""

import io
import os

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from beton_tools.base.image_formats import FORMATS, MAX_FILE_BYTES, open_image, upright_rgb
from beton_tools.write.images import BadImage, EncodeOptions, encode_sample

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\n"


@pytest.mark.parametrize("form", FORMATS)
def test_each_format_is_opened_from_a_path_and_from_bytes(tmp_path, form):
    buffer = io.BytesIO()
    Image.new("RGB", (5, 3)).save(buffer, form)
    path = tmp_path / "image.jpg"
    path.write_bytes(buffer.getvalue())
    for source in (path, str(path), buffer.getvalue()):
        image = open_image(source)
        assert (image.format, image.convert("RGB").size) == (form, (5, 3))


def test_postscript_named_jpg_is_refused_without_starting_a_program(tmp_path, monkeypatch):
    path, started = tmp_path / "image.jpg", tmp_path / "started"
    path.write_bytes(EPS)
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {started}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(UnidentifiedImageError):
        open_image(path).load()
    assert not started.exists()


def test_only_regular_files_of_limited_size_are_read(tmp_path):
    with (tmp_path / "sparse.jpg").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    os.mkfifo(tmp_path / "fifo.jpg")
    for name in ("sparse.jpg", "fifo.jpg", "missing.jpg", "nul\0.jpg"):
        with pytest.raises(OSError) as caught:
            open_image(tmp_path / name)
        assert caught.value.strerror


def progressive(extra_scans: int, segment: bytes = b"") -> bytes:
    """A progressive JPEG whose last scan is repeated; `segment` is the payload of an Exif segment."""
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    begin, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    exif = b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment
    return data[:2] + exif + data[2:end] + data[begin:end] * extra_scans + data[end:]


@pytest.mark.parametrize("segment", [b"", b"\xff\xd9"])
def test_a_jpeg_of_too_many_scans_is_refused_before_it_is_decoded(segment):
    with pytest.raises(OSError, match="a JPEG of more than 500 scans"):
        open_image(progressive(600, segment))
    with pytest.raises(BadImage, match=r"cannot be decoded \(a JPEG of more than 500 scans\)"):
        encode_sample(progressive(600, segment), EncodeOptions())


def test_only_markers_of_scans_count():
    """Not those in other segments, such as thumbnails, or behind the image, such as the video of a motion photo."""
    for data in (progressive(400), progressive(0, b"\xff\xda" * 600), progressive(0) + b"\xff\xda" * 600):
        assert open_image(data).convert("RGB").size == (64, 64)


def test_a_large_image_is_opened_without_a_warning(recwarn):
    file = io.BytesIO()
    Image.new("1", (13_000, 13_000)).save(file, "PNG")
    assert open_image(file.getvalue()).size == (13_000, 13_000)
    assert not list(recwarn)


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        (np.array([[1000, 1100, 5080]], np.uint16), [0, 6, 255]),
        (np.array([[-40, 0, 40]], np.int32), [0, 128, 255]),
        (np.array([[0.25, np.nan, np.inf, 0.75, 0.3]], np.float32), [0, 0, 255, 255, 26]),
        (np.array([[7, 7]], np.uint16), [0, 0]),
    ],
)
def test_deep_images_are_stretched_by_their_own_range(values, shown):
    file = io.BytesIO()
    Image.fromarray(values).save(file, "TIFF")
    rgb, _ = upright_rgb(open_image(file.getvalue()), 1)
    assert np.asarray(rgb)[0, :, 0].tolist() == shown
