"""`verify` reports damage anywhere in a file, and nothing for an intact one."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from beton_tools import UserError
from beton_tools.inspect.verify import verify
from beton_tools.jpeg.turbo import compress
from beton_tools.read.format import (
    FIELD_DTYPE,
    FLOAT_TYPE,
    HEADER_DTYPE,
    SAMPLE_DTYPE,
    Beton,
    first_page_offset,
    write_tables,
)
from beton_tools.read.manifest import manifest_path
from beton_tools.sources import open_source
from beton_tools.write.writer import WriteOptions, write_beton

METADATA = HEADER_DTYPE.itemsize + 2 * FIELD_DTYPE.itemsize


def put(path: Path, offset: int, content: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[offset : offset + len(content)] = content
    path.write_bytes(data)


def flip(path: Path, offset: int, count: int = 1) -> None:
    put(path, offset, bytes(byte ^ 0xFF for byte in path.read_bytes()[offset : offset + count]))


def test_an_intact_file_has_no_problems(photo_beton):
    report = verify(photo_beton)
    assert report.ok
    assert report.images_decoded == report.num_indexed == 24
    assert report.pages_checked == Beton.open(photo_beton).num_pages >= 2
    manifest_path(photo_beton).unlink()
    report = verify(photo_beton)
    assert report.ok and (report.pages_checked, report.images_decoded) == (0, 24)


def test_one_flipped_bit_is_found_without_decoding(photo_beton):
    beton = Beton.open(photo_beton)
    flip(photo_beton, int(beton.pointers[20]) + 700)
    report = verify(photo_beton, decode=False)
    assert [where for where, _ in report.problems] == ["page 1"]
    assert "samples" in report.problems[0][1]


LABEL = METADATA + 16  # of the first sample
WITHOUT_MANIFEST = {
    "image data": (lambda path, beton: flip(path, int(beton.pointers[5] + beton.sizes[5] // 2), 300), "sample 5", ""),
    "negative label": (lambda path, _: put(path, LABEL, b"\xff" * 8), "tables", "labels run from -1"),
    "large label": (lambda path, _: put(path, LABEL + 5, b"\1"), "tables", "but should run from 0 to 1048575"),
    "type of the labels": (
        lambda path, _: put(path, METADATA - FIELD_DTYPE.itemsize, bytes([FLOAT_TYPE])), "tables", "label field is neither"
    ),
    "width": (
        lambda path, beton: put(path, METADATA + 1, bytes([beton.widths[0] ^ 1])), "sample 0", "the metadata table states"
    ),
    "crop index": (
        lambda path, beton: flip(path, path.read_bytes().index(b"cropidx", int(beton.pointers[0])) + 9), "sample 0", "index"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WITHOUT_MANIFEST)
def test_damage_is_found_without_a_manifest(photo_beton, case):
    damage, where, what = WITHOUT_MANIFEST[case]
    manifest_path(photo_beton).unlink()
    damage(photo_beton, Beton.open(photo_beton))
    ((place, text),) = verify(photo_beton).problems
    assert place == where and what in text


def test_a_changed_label_is_found(photo_beton):
    flip(photo_beton, LABEL)
    problems = dict(verify(photo_beton, decode=False).problems)
    assert "changed since they were written" in problems["tables"] or "labels run" in problems["tables"]


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
    assert (where, what) == ("sample 0", "64 x 64 pixels, but the metadata table states 20000 x 20000")


def test_a_manifest_of_another_file_is_found(photo_beton, photo_folder, tmp_path):
    other = tmp_path / "other.beton"
    write_beton(other, open_source(photo_folder), WriteOptions(workers=0, subset_per_class=2))
    manifest_path(other).rename(manifest_path(photo_beton))
    report = verify(photo_beton, decode=False)
    assert ("manifest", "num_samples is 24, but the manifest states 6") in report.problems


def test_a_damaged_name_table_is_found_together_with_other_damage(photo_beton):
    path = manifest_path(photo_beton)
    entries = json.loads(path.read_text())
    entries["tables"]["names"]["text"] = entries["tables"]["names"]["text"][:-8]
    path.write_text(json.dumps(entries))
    flip(photo_beton, photo_beton.stat().st_size // 2)
    report = verify(photo_beton, decode=False)
    assert report.pages_checked > 0
    assert {where.split()[0] for where, _ in report.problems} == {"page", "manifest"}


def test_a_file_that_cannot_be_opened_is_an_error(tmp_path):
    (tmp_path / "a.beton").write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(UserError):
        verify(tmp_path / "a.beton")
