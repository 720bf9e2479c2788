"""Images of the listed formats are opened; no other reader of Pillow is started."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, UnidentifiedImageError

from beton_tools.base.image_formats import (
    FORMATS,
    MAX_FILE_BYTES,
    depth_prefix,
    open_image,
    orientation_of,
    upright_rgb,
)
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
    with pytest.raises(OSError, match="a JPEG with more than 500 scans"):
        open_image(progressive(600, segment))
    with pytest.raises(BadImage, match=r"cannot be decoded \(a JPEG with more than 500 scans\)"):
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


def png_of(pixels: np.ndarray) -> bytes:
    """A PNG of 16 bits per value: grey, grey and alpha, RGB or RGBA."""
    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    parts = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff_of(pixels: np.ndarray, byteorder: str, compression: str | None) -> bytes:
    file = io.BytesIO()
    alpha = ["unassalpha"] if pixels.shape[2] == 4 else None
    tifffile.imwrite(file, pixels, byteorder=byteorder, compression=compression, photometric="rgb", extrasamples=alpha)
    return file.getvalue()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["png", "<", ">", "< zlib", "> zlib"])
def test_values_of_12_bits_fill_the_range_in_grey_and_colour(photographs, channels, kind):
    """Pillow keeps the upper 8 of 16 bits: a scan of 12 bits would have the 16 darkest levels."""
    if kind != "png" and channels < 3:
        pytest.skip("Pillow reads grey TIFFs itself, and none of 16 bits with alpha")
    photo = photographs["coffee"][::4, ::4].astype(np.uint16) * 16 + 7
    has_alpha = channels in (2, 4)
    given = photo[..., : channels - int(has_alpha)]
    seen = given[3:] if has_alpha else given
    if has_alpha:
        alpha = np.full((*given.shape[:2], 1), 65535, np.uint16)
        given, alpha[:3] = given.copy(), 0
        given[:3] = 65535  # what lies under transparent pixels does not count
        given = np.concatenate([given, alpha], axis=2)
    data = png_of(given) if kind == "png" else tiff_of(given, kind[0], kind[2:] or None)

    image = open_image(data)
    rgb, is_transparent = upright_rgb(image, orientation_of(image))
    want = np.round((seen.astype(float) - seen.min()) * (255 / (seen.max() - seen.min())))
    assert np.array_equal(np.asarray(rgb)[-len(seen) :], np.broadcast_to(want, (*want.shape[:2], 3)))
    assert not has_alpha or (np.asarray(rgb)[:3] == 255).all()
    assert (is_transparent, depth_prefix(image)) == (has_alpha, "16-bit ")


def test_a_scan_of_16_bits_is_turned_as_its_exif_says(photographs):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = png_of(photographs["coffee"][:40, :60].astype(np.uint16) * 16)
    tag = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(tag)) + b"eXIf" + tag + struct.pack(">I", zlib.crc32(b"eXIf" + tag))
    image = open_image(data[:33] + chunk + data[33:])
    assert orientation_of(image) == 6 and upright_rgb(image, 6)[0].size == (40, 60)
