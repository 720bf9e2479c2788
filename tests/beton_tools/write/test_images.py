"""Every image is stored with the pixels that Pillow gives, or refused with a reason."""

import io
from pathlib import Path

import numpy as np
import pytest
from ffcv.fields.rgb_image import resizer
from PIL import Image

from beton_tools.jpeg import decode_rgb
from beton_tools.write.images import DAMAGED, KEPT, BadImage, EncodeOptions, encode_sample, shrink
from tests.beton_tools.conftest import crops, damaged, jpeg_of, photograph

PHOTO = crops("chelsea.png", 1, seed=3)[0]


def pixels_of(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("subsampling", [0, 1, 2], ids=["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("index", [True, False])
def test_a_baseline_jpeg_keeps_its_pixels_exactly(subsampling: int, index: bool) -> None:
    original = jpeg_of(PHOTO, subsampling=subsampling)
    stored = encode_sample(original, EncodeOptions(index=index))
    assert stored.how == KEPT
    assert (stored.height, stored.width) == (PHOTO.height, PHOTO.width)
    np.testing.assert_array_equal(pixels_of(stored.data), pixels_of(original))
    assert index or stored.data == original


def test_a_grey_jpeg_keeps_its_pixels_exactly() -> None:
    original = jpeg_of(PHOTO.convert("L"))
    stored = encode_sample(original, EncodeOptions())
    assert stored.how == KEPT
    np.testing.assert_array_equal(pixels_of(stored.data), pixels_of(original))


ODD = {
    "PNG": saved(PHOTO, "PNG"),
    "PNG with alpha": saved(PHOTO.convert("RGBA"), "PNG"),
    "PNG with palette": saved(PHOTO.convert("P"), "PNG"),
    "16-bit PNG": saved(Image.fromarray(np.asarray(PHOTO.convert("L")).astype(np.uint16)), "PNG"),
    "WebP": saved(PHOTO, "WEBP", lossless=True),
    "BMP": saved(PHOTO, "BMP"),
    "TIFF": saved(PHOTO, "TIFF"),
    "GIF": saved(PHOTO.convert("P"), "GIF"),
    "CMYK JPEG": saved(PHOTO.convert("CMYK"), "JPEG", quality=95),
    "progressive JPEG": jpeg_of(PHOTO, progressive=True),
}


@pytest.mark.parametrize("kind", ODD)
def test_other_formats_are_encoded_once_and_the_reason_recorded(kind: str) -> None:
    stored = encode_sample(ODD[kind], EncodeOptions(quality=95, subsampling="4:4:4"))
    expected = pixels_of(ODD[kind])
    assert stored.how != KEPT
    assert stored.how.upper() in kind.upper()
    assert stored.data[:2] == b"\xff\xd8"
    difference = np.abs(pixels_of(stored.data).astype(int) - expected)
    assert difference.mean() < 5  # one JPEG generation, of a dithered palette at worst; not another image


def test_a_png_named_jpeg_is_recognised_by_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "n02105855_2933.JPEG"  # the one such file in ImageNet
    path.write_bytes(ODD["PNG"])
    assert encode_sample(path.read_bytes(), EncodeOptions()).how == "PNG"


def with_segment(jpeg: bytes, marker: int, payload: bytes | None) -> bytes:
    """The file with its segments of this marker cut out, or replaced by one."""
    out, at = bytearray(jpeg[:2]), 2
    if payload is not None:
        out += bytes([0xFF, marker]) + (len(payload) + 2).to_bytes(2, "big") + payload
    while jpeg[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if jpeg[at + 1] not in (marker, 0xE0):
            out += jpeg[at:end]
        at = end
    return bytes(out) + jpeg[at:]


@pytest.mark.parametrize("index", [True, False])
def test_a_jpeg_that_only_pillow_reads_without_warning_is_re_encoded(index: bool) -> None:
    odd = with_segment(jpeg_of(PHOTO), 0xEE, b"Adobe" + bytes([0, 100, 0, 0, 0, 0, 2]))
    stored = encode_sample(odd, EncodeOptions(index=index, quality=98))
    assert stored.how == "RGB JPEG"
    assert np.abs(decode_rgb(stored.data).astype(int) - pixels_of(odd)).mean() < 2


def test_a_jpeg_without_its_tables_is_refused() -> None:
    with pytest.raises(BadImage):
        encode_sample(with_segment(jpeg_of(PHOTO), 0xDB, None), EncodeOptions())


def test_an_image_beyond_libjpegs_limit_is_refused_unless_it_is_shrunk() -> None:
    strip = saved(Image.new("RGB", (65501, 1)), "PNG")
    with pytest.raises(BadImage, match=r"65501 x 1 pixels, the limit is 65500 per side; give --max-resolution"):
        encode_sample(strip, EncodeOptions())
    assert encode_sample(strip, EncodeOptions(max_resolution=1000)).width == 1000


@pytest.mark.parametrize("options", [EncodeOptions(), EncodeOptions(max_resolution=50), EncodeOptions(lossless=False)])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_damaged_jpeg_is_stored_with_pillows_pixels_and_marked(options: EncodeOptions, progressive: bool) -> None:
    broken = damaged(jpeg_of(PHOTO, progressive=progressive))
    stored = encode_sample(broken, options)
    assert stored.how == DAMAGED
    if options.max_resolution is None:
        assert np.abs(decode_rgb(stored.data).astype(int) - pixels_of(broken)).mean() < 4


TRUNCATED = jpeg_of(PHOTO)[: len(jpeg_of(PHOTO)) // 2]
BAD = {
    "empty": (b"", "empty file"),
    "text": (b"404 not found", "not an image of a known format"),
    "cut JPEG": (TRUNCATED, "truncated"),
    "cut PNG": (ODD["PNG"][:-200], "cannot be decoded"),
    "header only": (jpeg_of(PHOTO)[:300], "cannot be decoded"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot be decoded"),
}


@pytest.mark.parametrize("kind", BAD)
def test_an_incomplete_image_is_refused_with_the_reason(kind: str) -> None:
    data, reason = BAD[kind]
    with pytest.raises(BadImage, match=reason) as caught:
        encode_sample(data, EncodeOptions())
    assert "\n" not in str(caught.value)


def test_shrinking_equals_ffcvs_writer() -> None:
    for name in ("coffee.png", "china.jpg", "chelsea.png"):
        image = np.asarray(photograph(name).convert("RGB"))
        height, width, _ = image.shape
        for part in (image, image[: height // 6 * 6, : width // 6 * 6], image[:, :200]):
            longest = max(part.shape)
            for limit in (256, longest // 2, longest // 3, longest * 9 // 10):
                np.testing.assert_array_equal(shrink(part, limit), resizer(part, limit))
    assert shrink(image, max(image.shape)) is image


def test_a_large_jpeg_is_shrunk_and_a_small_one_kept() -> None:
    stored = encode_sample(jpeg_of(photograph("china.jpg")), EncodeOptions(max_resolution=200))
    assert (stored.height, stored.width, stored.how) == (133, 200, "resized")
    assert pixels_of(stored.data).shape == (133, 200, 3)
    assert encode_sample(jpeg_of(PHOTO), EncodeOptions(max_resolution=200)).how == KEPT


def test_orientation_in_exif_is_ignored_as_timm_ignores_it() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: rotate by 90 degrees to show
    stored = encode_sample(jpeg_of(PHOTO, exif=exif), EncodeOptions())
    assert (stored.height, stored.width) == (PHOTO.height, PHOTO.width)


def test_a_jpeg_larger_than_a_page_is_re_encoded() -> None:
    noisy = jpeg_of(photograph("coffee.png").convert("RGB"), quality=100, subsampling=0)
    options = EncodeOptions(page_size=1 << 17)
    assert len(noisy) > options.page_size
    assert encode_sample(noisy, options).how == "RGB JPEG"
    with pytest.raises(BadImage, match="do not fit a page"):
        encode_sample(noisy, EncodeOptions(page_size=1 << 10))


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_raw_mode_stores_the_pixels_of_pillow(form: str) -> None:
    original = jpeg_of(PHOTO) if form == "JPEG" else saved(PHOTO, form)
    stored = encode_sample(original, EncodeOptions(write_mode="raw"))
    np.testing.assert_array_equal(
        np.frombuffer(stored.data, np.uint8).reshape(stored.height, stored.width, 3), pixels_of(original)
    )
    assert stored.how == f"raw, {'RGB JPEG' if form == 'JPEG' else form}"
    with pytest.raises(BadImage, match="do not fit a page of 65536; give --max-resolution"):
        encode_sample(saved(PHOTO.resize((200, 150)), form), EncodeOptions(write_mode="raw", page_size=1 << 16))


def test_proportion_stores_that_share_as_jpegs_chosen_by_contents() -> None:
    images = [jpeg_of(crop) for crop in crops("coffee.png", 60)]
    options = EncodeOptions(write_mode="proportion", compress_probability=0.3)
    raw = [encode_sample(image, options).how.startswith("raw, ") for image in images]
    assert 60 * 0.5 < sum(raw) < 60 * 0.9
    assert [encode_sample(image, options).how.startswith("raw, ") for image in reversed(images)] == raw[::-1]
