"""Every `.beton` that FFCV writes is read; anything else is an error, never a crash or a read outside the file."""

import struct
from pathlib import Path

import numpy as np
import pytest
from ffcv.fields import FloatField, IntField, JSONField, RGBImageField
from ffcv.writer import DatasetWriter

from beton_tools import UserError
from beton_tools.inspect.verify import verify
from beton_tools.read.format import FIELD_DTYPE, HEADER_DTYPE, Beton
from beton_tools.sources import open_source
from beton_tools.write.images import decode_sample
from beton_tools.write.writer import WriteOptions, write_beton
from tests.beton_tools.conftest import crops

METADATA = HEADER_DTYPE.itemsize + 2 * FIELD_DTYPE.itemsize


class Photos:
    """A data set as FFCV's writer expects it: indexable, each item a tuple."""

    def __init__(self, *more: object) -> None:
        self.images = [np.asarray(image) for image in crops("coffee.png", 7)]
        self.more = more

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[object, ...]:
        return self.images[i], i % 3, *self.more


@pytest.mark.parametrize("mode", ["raw", "jpg", "proportion"])
def test_files_of_ffcvs_own_writer(tmp_path, mode):
    path, photos = tmp_path / "ffcv.beton", Photos()
    fields = {"image": RGBImageField(write_mode=mode, jpeg_quality=95), "label": IntField()}
    DatasetWriter(str(path), fields, num_workers=2).from_indexed_dataset(photos, chunksize=2)
    beton = Beton.open(path)
    assert beton.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    for i, image in enumerate(photos.images):
        assert (beton.heights[i], beton.widths[i]) == image.shape[:2]
        difference = np.abs(decode_sample(beton, i).astype(int) - image)
        assert difference.mean() < (0.1 if mode == "raw" else 8)


def test_raw_images_of_one_size_identify_a_file_whose_tables_are_equal(tmp_path):
    fields, photos, betons = {"image": RGBImageField("raw"), "label": IntField()}, Photos(), []
    for path in (tmp_path / "a.beton", tmp_path / "b.beton"):
        DatasetWriter(str(path), fields, num_workers=1).from_indexed_dataset(photos)
        betons.append(Beton.open(path))
        photos.images = [image[::-1].copy() for image in photos.images]
    assert betons[0].tables_crc32() == betons[1].tables_crc32()
    assert betons[0].identity() == Beton.open(betons[0].path).identity() != betons[1].identity()


def test_a_file_with_more_fields_than_ours(tmp_path):
    path, photos = tmp_path / "ffcv.beton", Photos(2.5, {"caption": "a cup"})
    fields = {"picture": RGBImageField("raw"), "class": IntField(), "weight": FloatField(), "note": JSONField()}
    DatasetWriter(str(path), fields, num_workers=1).from_indexed_dataset(photos)
    beton = Beton.open(path)
    assert [f.name for f in beton.fields] == ["picture", "class", "weight", "note"]
    assert beton.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    np.testing.assert_array_equal(decode_sample(beton, 3), photos.images[3])


def test_among_several_int_fields_the_label_is_the_one_that_is_called_so(tmp_path):
    """Otherwise an index before the label would be trained on, with a class for each image."""
    path = tmp_path / "ffcv.beton"
    for name in ("label", "target"):
        fields = {"image": RGBImageField("raw"), "index": IntField(), name: IntField()}
        DatasetWriter(str(path), fields, num_workers=1).from_indexed_dataset(Photos(5))
        if name == "label":
            assert Beton.open(path).labels.tolist() == [5] * 7
    with pytest.raises(
        UserError, match=r"index or target could be the label field\. Write the file again, and call it"
    ):
        _ = Beton.open(path).labels


def test_a_file_without_labels_is_verified(tmp_path):
    class Weighted(Photos):
        def __getitem__(self, index):
            return super().__getitem__(index)[0], 0.5

    fields = {"picture": RGBImageField("raw"), "weight": FloatField()}
    DatasetWriter(str(tmp_path / "ffcv.beton"), fields, num_workers=1).from_indexed_dataset(Weighted())
    report = verify(tmp_path / "ffcv.beton")
    assert (report.ok, report.has_labels, report.images_decoded) == (True, False, 7)


def test_a_file_of_a_killed_ffcv_writer_is_refused(tmp_path):
    path = tmp_path / "killed.beton"
    header = np.array([(2, 2, 8 << 20, 100, 0)], HEADER_DTYPE)  # alloc_table_ptr is filled in last
    path.write_bytes(header.tobytes() + bytes(1 << 16))
    with pytest.raises(UserError, match="interrupted"):
        Beton.open(path)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file of six images in three classes, with the smallest pages that our writer allows."""
    folder = tmp_path_factory.mktemp("good")
    for i, image in enumerate(crops("chelsea.png", 6)):
        (folder / "photos" / f"c{i % 3}").mkdir(parents=True, exist_ok=True)
        image.resize((40, 30)).save(folder / "photos" / f"c{i % 3}" / f"{i}.jpg")
    write_beton(folder / "good.beton", open_source(folder / "photos"), WriteOptions(workers=0, page_size=1 << 16))
    return (folder / "good.beton").read_bytes()


def touch_everything(path: Path, data: bytes) -> None:
    """Open the file; if that succeeds, read and decode every image."""
    path.write_bytes(data)
    beton = Beton.open(path)
    for i in range(len(beton)):
        assert len(beton.read_bytes(i)) == beton.sizes[i]
        try:
            pixels = decode_sample(beton, i)
        except UserError:
            continue
        assert pixels.shape == (beton.heights[i], beton.widths[i], 3)


def patched(data: bytes, offset: int, form: str, value: int) -> bytes:
    changed = bytearray(data)
    struct.pack_into(form, changed, offset % len(data), value)
    return bytes(changed)


LIES = {
    "another version": (0, "<H", 3),
    "no fields": (2, "<H", 0),
    "fields beyond the file": (2, "<H", 65535),
    "page size of zero": (4, "<I", 0),
    "odd page size": (4, "<I", 12345),
    "no samples": (8, "<Q", 0),
    "huge number of samples": (8, "<Q", 1 << 60),
    "number of samples that overflows": (8, "<Q", (1 << 64) // 24 + 1),
    "one sample too many": (8, "<Q", 7),
    "fewer samples than images": (8, "<Q", 3),
    "table behind the end": (16, "<Q", 1 << 40),
    "table inside the metadata": (16, "<Q", METADATA + 24),
    "unknown field type": (HEADER_DTYPE.itemsize, "<B", 255),
    "two images": (HEADER_DTYPE.itemsize + FIELD_DTYPE.itemsize, "<B", 2),
    "no image": (HEADER_DTYPE.itemsize, "<B", 1),
    "pointer behind the end": (METADATA + 5, "<Q", 1 << 62),
    "pointer that overflows": (METADATA + 5, "<Q", (1 << 64) - 1),
    "pointer into the header": (METADATA + 5, "<Q", 0),
    "width of zero": (METADATA + 1, "<H", 0),
    "unknown mode": (METADATA, "<B", 7),
    "raw of the wrong size": (METADATA, "<B", 1),
    "size that overflows": (-8, "<Q", (1 << 64) - 8),
    "size beyond the table": (-8, "<Q", 1 << 17),
    "size of zero": (-8, "<Q", 0),
    "pointer moved in the table only": (-16, "<Q", 70000),
    "images larger than a page": (4, "<I", 256),
    "a field name that is not ASCII": (HEADER_DTYPE.itemsize + 1, "<B", 0xC3),
    "a byte that is not ASCII after the field name": (HEADER_DTYPE.itemsize + 12, "<B", 0xFF),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_file_with_wrong_tables_is_refused_in_one_line(good, tmp_path, lie):
    with pytest.raises(UserError) as caught:
        touch_everything(tmp_path / "lie.beton", patched(good, *LIES[lie]))
    assert "\n" not in str(caught.value)


def test_two_fields_with_the_same_name_are_refused(good, tmp_path):
    """FFCV's reader would take one for the other."""
    second = HEADER_DTYPE.itemsize + FIELD_DTYPE.itemsize
    twice = bytearray(good)
    twice[second + 1 : second + 7] = b"image\0"
    with pytest.raises(UserError, match="two fields have the same name"):
        touch_everything(tmp_path / "twice.beton", bytes(twice))


def test_more_pixels_than_the_bytes_can_encode_are_refused(good, tmp_path):
    claim = patched(patched(good, METADATA + 1, "<H", 65535), METADATA + 3, "<H", 65535)
    with pytest.raises(UserError, match="sample 0"):
        touch_everything(tmp_path / "bomb.beton", claim)


def test_every_truncation_is_refused(good, tmp_path):
    path = tmp_path / "cut.beton"
    for length in [*range(0, 2200, 97), *range(2200, len(good), 7919), len(good) - 1]:
        path.write_bytes(good[:length])
        with pytest.raises(UserError):
            Beton.open(path)


def test_a_file_of_another_kind_is_not_called_incomplete(tmp_path):
    (tmp_path / "photo.beton").write_bytes(b"image" * 100)
    with pytest.raises(UserError, match=r"not a \.beton file of version 2"):
        Beton.open(tmp_path / "photo.beton")
