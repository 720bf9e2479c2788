"""`verify` reports damage anywhere in a file, and nothing for an intact one."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from beton_tools import UserError
from beton_tools.inspect.verify import verify
from beton_tools.jpeg.turbo import compress
from beton_tools.read.format import FIELD_DTYPE, HEADER_DTYPE, SAMPLE_DTYPE, Beton, first_page_offset, write_tables
from beton_tools.read.manifest import manifest_path
from beton_tools.sources import open_source
from beton_tools.write.writer import WriteOptions, write_beton

METADATA = HEADER_DTYPE.itemsize + 2 * FIELD_DTYPE.itemsize


@pytest.fixture
def written(photo_folder: Path, tmp_path: Path) -> Path:
    out = tmp_path / "photos.beton"
    write_beton(out, open_source(photo_folder), WriteOptions(workers=0, page_size=1 << 16))
    return out


def flip(path: Path, offset: int, count: int = 1) -> None:
    data = bytearray(path.read_bytes())
    for i in range(count):
        data[offset + i] ^= 0xFF
    path.write_bytes(data)


def test_an_intact_file_has_no_problems(written):
    report = verify(written)
    assert report.ok
    assert report.images_decoded == report.num_indexed == 24
    assert report.pages_checked == Beton.open(written).num_pages >= 2


def test_an_intact_file_without_manifest_has_no_problems(written):
    manifest_path(written).unlink()
    report = verify(written)
    assert report.ok
    assert (report.pages_checked, report.images_decoded) == (0, 24)


def test_one_flipped_bit_is_found_without_decoding(written):
    beton = Beton.open(written)
    flip(written, int(beton.pointers[20]) + 700)
    report = verify(written, decode=False)
    assert [where for where, _ in report.problems] == ["page 1"]
    assert "samples" in report.problems[0][1]


def test_damaged_image_data_is_found_without_manifest(written):
    manifest_path(written).unlink()
    beton = Beton.open(written)
    middle = int(beton.pointers[5] + beton.sizes[5] // 2)
    flip(written, middle, 300)
    report = verify(written)
    assert "sample 5" in [where for where, _ in report.problems]


def test_a_changed_label_is_found(written):
    flip(written, METADATA + 16)  # the first sample's label
    problems = dict(verify(written, decode=False).problems)
    assert "changed since they were written" in problems["tables"] or "labels run" in problems["tables"]


@pytest.mark.parametrize("label", [-1, 1 << 40])
def test_an_impossible_label_is_found_without_manifest(written, label):
    manifest_path(written).unlink()
    data = bytearray(written.read_bytes())
    data[METADATA + 16 : METADATA + 24] = label.to_bytes(8, "little", signed=True)
    written.write_bytes(data)
    ((where, what),) = verify(written, decode=False).problems
    assert where == "tables" and what.startswith("labels run from") and what.endswith("expected 0 to 1048575")


def test_a_huge_image_size_in_the_metadata_takes_no_memory(tmp_path):
    stored = compress(np.zeros((64, 64, 3), np.uint8), 90, "4:2:0").ljust(400_000, b"\0")
    samples, start = np.zeros(1, SAMPLE_DTYPE), first_page_offset(1, 1 << 19)
    samples["f0"]["height"] = samples["f0"]["width"] = 20_000
    samples["f0"]["data_ptr"] = start
    with (tmp_path / "a.beton").open("wb") as file:
        sizes = np.array([len(stored)])
        write_tables(file, samples, sizes, page_size=1 << 19, data_start=start, data_end=start + (1 << 19))
        file.seek(start)
        file.write(stored)
    tracemalloc.start()
    try:
        ((where, what),) = verify(tmp_path / "a.beton", workers=1).problems
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    assert (where, what) == ("sample 0", "64 x 64 pixels, the metadata table states 20000 x 20000")


def test_a_wrong_image_size_in_the_metadata_is_found(written):
    manifest_path(written).unlink()
    data = bytearray(written.read_bytes())
    data[METADATA + 1] ^= 1  # width
    written.write_bytes(data)
    assert [where for where, what in verify(written).problems if "the metadata table states" in what] == ["sample 0"]


def test_a_wrong_crop_index_is_found(written):
    manifest_path(written).unlink()
    beton = Beton.open(written)
    start = int(beton.pointers[0])
    at = written.read_bytes().index(b"cropidx", start)
    flip(written, at + 9)
    report = verify(written)
    assert report.problems == [("sample 0", report.problems[0][1])]
    assert "index" in report.problems[0][1]


def test_a_manifest_of_another_file_is_found(written, photo_folder, tmp_path):
    other = tmp_path / "other.beton"
    write_beton(other, open_source(photo_folder), WriteOptions(workers=0, subset_per_class=2))
    manifest_path(other).rename(manifest_path(written))
    report = verify(written, decode=False)
    assert ("manifest", "num_samples is 24, the manifest states 6") in report.problems


def test_a_damaged_name_table_is_found_together_with_other_damage(written):
    path = manifest_path(written)
    entries = json.loads(path.read_text())
    entries["names"]["text"] = entries["names"]["text"][:-8]
    path.write_text(json.dumps(entries))
    flip(written, written.stat().st_size // 2)
    report = verify(written, decode=False)
    assert report.pages_checked > 0
    assert {where.split()[0] for where, _ in report.problems} == {"page", "manifest"}


def test_a_file_that_cannot_be_opened_is_an_error(tmp_path):
    (tmp_path / "a.beton").write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(UserError):
        verify(tmp_path / "a.beton")
