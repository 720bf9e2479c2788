"""An indexed file has the same pixels and is at most 4 % larger; other files are refused."""

import io
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from beton_tools.jpeg import JpegError, add_index, index, parse
from beton_tools.jpeg.huffman import AC, SYMBOLS, TABLES, derive, fit
from beton_tools.jpeg.markers import as_bytes_array, scan_header, segment
from beton_tools.jpeg.transcode import MIN_SEGMENT_BYTES

from .conftest import pillow


def saved(pixels, mode="RGB", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def scan(file):
    return file[scan_header(as_bytes_array(file)).scan_at :]


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("quality", [1, 50, 100])
def test_pixels_of_noise_are_equal(quality, optimize):
    """Noise uses all coefficients and the longest terms at high quality, almost none at low quality."""
    noise = np.random.default_rng(quality).integers(0, 256, (40, 56, 3), np.uint8)
    file = saved(noise, quality=quality, optimize=optimize)
    np.testing.assert_array_equal(pillow(add_index(file, 1)), pillow(file))


def test_transcoding_twice_equals_transcoding_once(jpeg, subsampling):
    file = jpeg(100, 128, subsampling)
    columns = index.mcu_grid(scan_header(as_bytes_array(file)))[1]
    once = add_index(file, columns)
    np.testing.assert_array_equal(pillow(once), pillow(file))
    for interval in (d for d in range(1, columns + 1) if columns % d == 0):
        assert add_index(add_index(file, interval), columns) == once


@pytest.mark.parametrize("blocks", [1, 3, 5, 7, 64])
def test_files_with_restart_markers_are_transcoded(photographs, blocks):
    file = saved(photographs["chelsea"][:120, :200], restart_marker_blocks=blocks)
    indexed = add_index(file)
    np.testing.assert_array_equal(pillow(indexed), pillow(file))
    assert index.read(indexed) is not None


def test_pixels_of_photographs_are_equal(photographs):
    for name, image in photographs.items():
        for options in ({"subsampling": 0}, {"subsampling": 2}, {"mode": "L"}, {"optimize": True, "quality": 96}):
            file = saved(image, **options)
            np.testing.assert_array_equal(pillow(add_index(file)), pillow(file), err_msg=name)


@pytest.mark.parametrize("quality", [20, 75, 100])
def test_the_scan_equals_the_one_that_libjpeg_writes_with_optimised_tables(photographs, quality):
    for name in ("chelsea", "coffee"):
        for sampling in (0, 1, 2):
            options = {"quality": quality, "subsampling": sampling}
            file = saved(photographs[name], **options)
            columns = index.mcu_grid(scan_header(as_bytes_array(file)))[1]
            optimised = saved(photographs[name], **options, optimize=True, restart_marker_rows=1)
            assert scan(add_index(file, columns)) == scan(optimised), (name, sampling)


def test_tables_fit_counts_that_would_need_codes_of_more_than_16_bits():
    counts = np.zeros((TABLES, SYMBOLS), np.int64)
    counts[0, 3] = 5  # one symbol alone
    counts[AC, 7:37] = 3 ** np.arange(30)  # a tree with a depth of 30
    spec = fit(counts, np.array([0, AC]))
    assert spec.counts[0].tolist() == [0, 1] + [0] * 15 and spec.values[0, 0] == 3
    lengths = np.repeat(np.arange(17), spec.counts[AC])
    assert lengths.size == 30 and (2.0**-lengths).sum() <= 1 - 2**-16, "the code that consists of ones only is free"
    assert spec.values[AC, :30].tolist() == list(range(36, 6, -1)), "frequent symbols have short codes"
    derive(spec, np.array([0, AC]))


def test_colour_spaces_are_kept(photographs):
    """RGB is signalled by the ids of the components or by an Adobe segment."""
    rgb = saved(photographs["coffee"][:64, :96], keep_rgb=True)
    np.testing.assert_array_equal(pillow(add_index(rgb)), pillow(rgb))
    ycc = saved(photographs["coffee"][:64, :96])
    at = ycc.index(b"\xff\xe0")
    adobe = ycc[:2] + segment(0xEE, b"Adobe" + bytes([0, 100, 0, 0, 0, 0, 0])) + ycc[at + 18 :]
    assert (pillow(adobe) != pillow(ycc)).any()
    np.testing.assert_array_equal(pillow(add_index(adobe)), pillow(adobe))


def test_exif_profiles_and_comments_are_removed_and_orientation_is_ignored(photographs):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    plain = saved(photographs["coffee"][:64, :96])
    file = saved(photographs["coffee"][:64, :96], exif=exif, icc_profile=b"x" * 300, comment=b"hello")
    assert add_index(file) == add_index(plain)
    assert pillow(add_index(file)).shape == (64, 96, 3)


def test_grey_files_that_claim_subsampling_are_exact(jpeg, decode):
    """A single component is coded block by block whatever its sampling factors are (T.81 A.2.2)."""
    file = bytearray(jpeg(50, 70, "gray"))
    file[parse(bytes(file)).sof_at + 11] = 0x22
    indexed = add_index(bytes(file), 3)
    np.testing.assert_array_equal(pillow(indexed), pillow(bytes(file)))
    code, pixels = decode(indexed, 20, 30, 17, 19)
    assert code == 0
    np.testing.assert_array_equal(pixels, pillow(indexed)[20:37, 30:49])


def test_bytes_after_the_end_are_removed(jpeg):
    assert add_index(jpeg(50, 70) + b"\0garbage") == add_index(jpeg(50, 70))


@pytest.mark.parametrize("where", ["a segment", "the last segment"])
def test_code_words_that_are_left_over_are_damage(photographs, where):
    """Those before them were misread: Pillow shows other pixels than were encoded, without an error."""
    file = saved(photographs["coffee"][:64, :96], restart_marker_blocks=6)
    assert parse(add_index(file))
    if where == "a segment":
        body = scan(file)
        first = body[: body.index(b"\xff\xd0")]
        file = file.replace(first, first + first)
    else:  # the frame claims fewer rows than were encoded
        file = saved(photographs["coffee"][:64, :96])
        at = file.index(b"\xff\xc0") + 5
        file = file[:at] + b"\0\x30" + file[at + 2 :]
    with pytest.raises(JpegError, match="damaged"):
        add_index(file)


def test_files_that_cannot_be_transcoded_are_refused(photographs, jpeg):
    small = photographs["coffee"][:64, :96]
    damaged = bytearray(jpeg(64, 96))
    damaged[-40:-2] = bytes(38)
    for file, why in [
        (saved(small, progressive=True), "progressive"),
        (saved(small, mode="CMYK"), "unsupported"),
        (saved(small)[:-200], "damaged"),
        (bytes(damaged), "damaged"),
        (saved(small).replace(b"\xff\xda\0\x0c\3\1", b"\xff\xda\0\x0c\3\2"), "in order"),
    ]:
        with pytest.raises(JpegError, match=why):
            add_index(file)
    with pytest.raises(ValueError, match="does not divide"):
        add_index(saved(small), 4)


def test_a_tiny_file_that_claims_a_huge_image_allocates_no_memory(jpeg):
    file = bytearray(jpeg(64, 96))
    at = parse(bytes(file)).sof_at + 5
    file[at : at + 4] = b"\xff\xff\xff\xff"
    tracemalloc.start()
    with pytest.raises(JpegError, match="damaged"):
        add_index(bytes(file))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_segments_are_as_short_as_allowed(jpeg):
    # 16, 47 and 24 MCUs of 8 pixels times two: rows of a prime number of MCUs are one segment
    for width in (256, 376, 384):
        file = add_index(jpeg(200, width, "4:4:4"))
        segments = index.read(file)
        mean = (segments[..., 1] - segments[..., 0]).mean()
        assert segments.shape[1] == 1 if width == 376 else segments.shape[1] > 1 and mean >= 0.9 * MIN_SEGMENT_BYTES


@pytest.mark.slow
def test_real_imagenet_files_keep_their_pixels_and_grow_by_at_most_4_percent(imagenet_sample):
    before, after, refused = 0, 0, 0
    for path in sorted(imagenet_sample.glob("*/*.JPEG")):
        file = path.read_bytes()
        try:
            indexed = add_index(file)
        except JpegError:
            refused += 1
            continue
        np.testing.assert_array_equal(pillow(indexed), pillow(file))
        before += len(file)
        after += len(indexed)
    assert after <= 1.04 * before and refused <= 7
