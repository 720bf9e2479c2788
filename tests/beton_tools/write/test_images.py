"""Every image is stored with the pixels that Pillow gives, or refused with a reason."""

import io
import sys

import numpy as np
import pytest
from ffcv.fields.rgb_image import resizer
from PIL import Image, ImageDraw, ImageOps

from beton_tools.base.errors import UserError
from beton_tools.base.image_formats import READS_AVIF, TRANSPARENT, open_image, upright_rgb
from beton_tools.jpeg import decode_rgb, parse
from beton_tools.write.images import (
    DAMAGED,
    KEPT,
    RAW,
    BadImage,
    EncodedImage,
    EncodeOptions,
    count_notes,
    encode_sample,
    shrink,
)
from beton_tools.write.writer import WriteOptions
from tests.beton_tools.conftest import crops, damaged, jpeg_of, photograph

PHOTO = crops("chelsea.png", 1, seed=3)[0]
SMALL = PHOTO.crop((0, 0, 96, 64))


def pixels_of(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("subsampling", [0, 1, 2, None], ids=["4:4:4", "4:2:2", "4:2:0", "grey"])
def test_a_baseline_jpeg_keeps_its_pixels_exactly(subsampling):
    original = jpeg_of(PHOTO.convert("L")) if subsampling is None else jpeg_of(PHOTO, subsampling=subsampling)
    stored = encode_sample(original, EncodeOptions())
    assert stored.how == KEPT
    assert (stored.height, stored.width) == (PHOTO.height, PHOTO.width)
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
def test_other_formats_are_encoded_once_and_the_reason_recorded(kind):
    stored = encode_sample(ODD[kind], EncodeOptions(quality=95, subsampling="4:4:4", write_mode="jpg"))
    expected = np.asarray(upright_rgb(open_image(ODD[kind]), 1)[0])
    assert stored.how != KEPT
    assert stored.how.upper() in kind.upper()
    assert stored.data[:2] == b"\xff\xd8"
    difference = np.abs(pixels_of(stored.data).astype(int) - expected)
    assert difference.mean() < 5  # one JPEG generation, of a dithered palette at worst; not another image


@pytest.mark.parametrize("more", [{"icc_profile": b"icc"}, {"save_all": True, "append_images": [SMALL.rotate(90)]}])
@pytest.mark.parametrize("lossless", [True, False])
def test_a_lossless_webp_keeps_its_pixels_beside_metadata_and_as_an_animation(lossless, more):
    stored = encode_sample(saved(SMALL, "WEBP", lossless=lossless, **more), EncodeOptions())
    assert stored.how.startswith(RAW) == lossless
    if lossless:
        np.testing.assert_array_equal(np.frombuffer(stored.data, np.uint8).reshape(64, 96, 3), np.asarray(SMALL))


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


def test_a_jpeg_that_only_pillow_reads_without_warning_is_re_encoded():
    odd = with_segment(jpeg_of(PHOTO), 0xEE, b"Adobe" + bytes([0, 100, 0, 0, 0, 0, 2]))
    stored = encode_sample(odd, EncodeOptions(quality=98))
    assert stored.how == "RGB JPEG"
    assert np.abs(decode_rgb(stored.data).astype(int) - pixels_of(odd)).mean() < 2


def test_a_jpeg_without_its_tables_is_refused():
    with pytest.raises(BadImage):
        encode_sample(with_segment(jpeg_of(PHOTO), 0xDB, None), EncodeOptions())


def test_an_image_beyond_libjpegs_limit_is_refused_unless_it_is_shrunk():
    strip = saved(Image.new("RGB", (65501, 1)), "PNG")
    with pytest.raises(BadImage, match=r"65501 x 1 pixels, but the limit is 65500 per side. Give --max-resolution"):
        encode_sample(strip, EncodeOptions())
    assert encode_sample(strip, EncodeOptions(max_resolution=1000)).width == 1000


@pytest.mark.parametrize("options", [EncodeOptions(), EncodeOptions(max_resolution=50), EncodeOptions(lossless=False)])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_damaged_jpeg_is_stored_with_pillows_pixels_and_marked(options, progressive):
    broken = damaged(jpeg_of(PHOTO, progressive=progressive))
    stored = encode_sample(broken, options)
    assert stored.how == DAMAGED
    if options.max_resolution is None:
        assert np.abs(decode_rgb(stored.data).astype(int) - pixels_of(broken)).mean() < 4


TRUNCATED = jpeg_of(PHOTO)[: len(jpeg_of(PHOTO)) // 2]
BAD = {
    "empty": (b"", "empty file"),
    "text": (b"404 not found", "not an image in a known format"),
    "cut JPEG": (TRUNCATED, "truncated"),
    "cut PNG": (ODD["PNG"][:-200], "cannot be decoded"),
    "header only": (jpeg_of(PHOTO)[:300], "cannot be decoded"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot be decoded"),
}


@pytest.mark.parametrize("kind", BAD)
def test_an_incomplete_image_is_refused_with_the_reason(kind):
    data, reason = BAD[kind]
    with pytest.raises(BadImage, match=reason) as caught:
        encode_sample(data, EncodeOptions())
    assert "\n" not in str(caught.value)


def test_shrinking_equals_ffcvs_writer():
    for name in ("coffee.png", "china.jpg", "chelsea.png"):
        image = np.asarray(photograph(name).convert("RGB"))
        height, width, _ = image.shape
        for part in (image, image[: height // 6 * 6, : width // 6 * 6], image[:, :200]):
            longest = max(part.shape)
            for limit in (256, longest // 2, longest // 3, longest * 9 // 10):
                np.testing.assert_array_equal(shrink(part, limit), resizer(part, limit))
    assert shrink(image, max(image.shape)) is image


@pytest.mark.parametrize(("limit", "most"), [(500, 0), (350, 0.8), (170, 0.8), (88, 1.5)])
def test_a_photograph_stored_at_a_quarter_of_its_size_is_decoded_smaller(limit, most):
    """libjpeg reduces 1411 x 1411 pixels by 1, 2, 4 and 8; the size is that of FFCV's writer, the pixels nearly."""
    large = jpeg_of(photograph("retina.jpg"))
    stored = encode_sample(large, EncodeOptions(max_resolution=limit, write_mode="raw"))
    exact = shrink(decode_rgb(large), limit)
    assert (stored.height, stored.width, stored.how) == (*exact.shape[:2], "raw, resized")
    difference = np.abs(np.frombuffer(stored.data, np.uint8).reshape(exact.shape).astype(int) - exact)
    assert difference.mean() <= most and (difference.any() or limit == 500)


def test_a_damaged_photograph_is_noticed_when_it_is_decoded_smaller():
    cut = jpeg_of(photograph("retina.jpg"))[:-20_000]
    with pytest.raises(BadImage, match="truncated"):
        encode_sample(cut, EncodeOptions(max_resolution=300))


WHOLE = photograph("chelsea.png").convert("RGB").crop((0, 0, 160, 128))  # whole MCUs with every subsampling
CUT = WHOLE.crop((0, 0, 157, 121))


def noted(image: Image.Image, orientation: int, **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return jpeg_of(image, exif=exif, **options)


def difference(stored: EncodedImage, original: bytes) -> np.ndarray:
    """Between the pixels that are stored and those that Pillow turns as Exif says."""
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(original)))
    assert Image.open(io.BytesIO(stored.data)).getexif().get(0x0112, 1) == 1
    np.testing.assert_array_equal(pixels_of(stored.data), decode_rgb(stored.data))
    return np.abs(decode_rgb(stored.data).astype(int) - np.asarray(upright))


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_jpeg_is_turned_as_exif_says_without_loss(orientation):
    for subsampling in (0, 1, 2):
        original = noted(WHOLE, orientation, subsampling=subsampling)
        stored = encode_sample(original, EncodeOptions())
        assert stored.how == KEPT
        # rounding of the DCT
        assert difference(stored, original).max() <= 3 and difference(stored, original).mean() < 0.3
    again = encode_sample(stored.data, EncodeOptions())
    assert again.data == stored.data


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_jpeg_whose_edge_blocks_are_incomplete_is_turned_and_encoded_again(orientation):
    original = noted(CUT, orientation)
    stored = encode_sample(original, EncodeOptions(quality=95))
    assert stored.how == "RGB JPEG"
    assert difference(stored, original).mean() < 2
    assert encode_sample(noted(CUT, 5), EncodeOptions()).how == KEPT  # a transposition moves no block off the grid


def test_large_images_and_other_formats_are_turned_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    for data in (noted(photograph("china.jpg"), 6), saved(photograph("china.jpg"), "PNG", exif=exif)):
        stored = encode_sample(data, EncodeOptions(max_resolution=200))
        assert (stored.height, stored.width) == (200, 133)
        assert difference(stored, saved(photograph("china.jpg").resize((200, 133)), "PNG", exif=exif)).mean() < 6


def test_a_tiff_which_pillow_turns_itself_is_turned_once():
    for orientation in range(2, 9):
        original = saved(CUT, "TIFF", tiffinfo={0x0112: orientation})
        stored = encode_sample(original, EncodeOptions(write_mode="raw"))
        upright = np.asarray(Image.open(io.BytesIO(original)).convert("RGB"))
        np.testing.assert_array_equal(
            np.frombuffer(stored.data, np.uint8).reshape(stored.height, stored.width, 3), upright
        )
        assert (upright.shape[0] > upright.shape[1]) == (orientation > 4)


@pytest.mark.parametrize("exif", [b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0" + bytes(9)])
def test_damaged_exif_data_and_upright_false_turn_nothing(exif):
    assert encode_sample(jpeg_of(WHOLE, exif=exif), EncodeOptions()).width == WHOLE.width
    assert encode_sample(noted(WHOLE, 6), EncodeOptions(upright=False)).width == WHOLE.width
    assert encode_sample(noted(CUT, 6), EncodeOptions(upright=False, lossless=False)).width == CUT.width


def test_a_header_that_claims_many_pixels_is_not_turned():
    """Its coefficients would take 25 GB."""
    data = bytearray(noted(WHOLE, 6))
    at = parse(bytes(data)).sof_at + 5
    data[at : at + 4] = (65_000).to_bytes(2, "big") * 2
    with pytest.raises(BadImage, match=r"cannot be decoded .*exceeds limit"):
        encode_sample(bytes(data), EncodeOptions())


def stamp(mode: str) -> Image.Image:
    """A black disk on transparent black; without its transparency it would be uniform."""
    disk = Image.new("RGBA", (64, 48))
    ImageDraw.Draw(disk).ellipse((8, 8, 40, 40), fill=(0, 0, 0, 255))
    return disk.convert(mode)


@pytest.mark.parametrize(
    ("mode", "form"),
    [("RGBA", "PNG"), ("LA", "PNG"), ("PA", "PNG"), ("RGBA", "WEBP"), ("RGBA", "GIF"), ("RGBA", "TIFF")],
)
@pytest.mark.parametrize(("background", "colour"), [("white", 255), ("#808080", 128)])
def test_transparent_pixels_get_the_background(mode, form, background, colour):
    more = {"lossless": True} if form == "WEBP" else {}
    image = stamp("RGBA").quantize(4) if mode == "PA" else stamp(mode)
    stored = encode_sample(saved(image, form, **more), EncodeOptions(background=background))
    assert stored.how == f"raw, transparent {form}" and count_notes({stored.how: 3}) == {TRANSPARENT: 3}
    pixels = np.frombuffer(stored.data, np.uint8).reshape(48, 64, 3)
    assert (pixels[0] == colour).all() and (pixels[24, 24] == 0).all()


def test_an_image_with_opaque_alpha_is_not_counted():
    assert encode_sample(ODD["PNG with alpha"], EncodeOptions()).how == "raw, PNG"
    with pytest.raises(UserError, match=r"--background cannot be 'whitish'\. Give a colour such as white"):
        WriteOptions(background="whitish")


def test_small_files_without_loss_are_exact_and_large_ones_nearly():
    large = photograph("coffee.png").convert("RGB")
    small = large.crop((0, 0, 128, 128))
    stored = encode_sample(saved(small, "PNG"), EncodeOptions())
    assert stored.how == "raw, PNG" and stored.data == small.tobytes()
    stored = encode_sample(saved(large, "PNG"), EncodeOptions())
    assert stored.how == "PNG" and parse(stored.data).h_max == 1
    error = np.abs(decode_rgb(stored.data).astype(int) - np.asarray(large)).mean()
    coarse = encode_sample(saved(large, "PNG"), EncodeOptions(quality=90, subsampling="4:2:0", write_mode="jpg"))
    assert error < 1.2 < 2.8 < np.abs(decode_rgb(coarse.data).astype(int) - np.asarray(large)).mean()


def test_heic_needs_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(BadImage, match=r"HEIC files need pillow-heif. Run: pip install pillow-heif"):
        encode_sample(b"\0\0\0\x24ftypheic" + bytes(99), EncodeOptions())


def test_heic_is_read_upright():
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = encode_sample(saved(WHOLE, "HEIF", exif=exif.tobytes()), EncodeOptions())
    assert stored.how == "HEIF"
    assert np.abs(decode_rgb(stored.data).astype(int) - np.asarray(WHOLE.rotate(-90, expand=True))).mean() < 8


@pytest.mark.skipif(not READS_AVIF, reason="this Pillow has no AVIF")
def test_avif_is_read_upright_and_by_its_content():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(WHOLE, "AVIF", exif=exif.tobytes())
    as_image_file = data[:8] + b"mif1" + data[12:]  # the main brand may be the container's
    for file in (data, as_image_file):
        stored = encode_sample(file, EncodeOptions())
        assert stored.how == "AVIF"
        assert np.abs(decode_rgb(stored.data).astype(int) - np.asarray(WHOLE.rotate(-90, expand=True))).mean() < 8
    clear = encode_sample(saved(stamp("RGBA"), "AVIF"), EncodeOptions())
    assert clear.how == "transparent AVIF" and decode_rgb(clear.data)[0].min() > 240


def test_a_jpeg_larger_than_a_page_is_re_encoded():
    noisy = jpeg_of(photograph("coffee.png").convert("RGB"), quality=100, subsampling=0)
    options = EncodeOptions(page_size=1 << 17)
    assert len(noisy) > options.page_size
    assert encode_sample(noisy, options).how == "RGB JPEG"
    with pytest.raises(BadImage, match="do not fit a page"):
        encode_sample(noisy, EncodeOptions(page_size=1 << 10))


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_raw_mode_stores_the_pixels_of_pillow(form):
    original = jpeg_of(PHOTO) if form == "JPEG" else saved(PHOTO, form)
    stored = encode_sample(original, EncodeOptions(write_mode="raw"))
    np.testing.assert_array_equal(
        np.frombuffer(stored.data, np.uint8).reshape(stored.height, stored.width, 3), pixels_of(original)
    )
    assert stored.how == f"raw, {'RGB JPEG' if form == 'JPEG' else form}"
    with pytest.raises(BadImage, match=r"do not fit a page of 65536\. Give --max-resolution"):
        encode_sample(saved(PHOTO.resize((200, 150)), form), EncodeOptions(write_mode="raw", page_size=1 << 16))
