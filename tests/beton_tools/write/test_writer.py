"""The properties of the files that the writer leaves."""

import io
from collections import Counter
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from ffcv.reader import Reader
from PIL import Image

from beton_tools import UserError
from beton_tools.read.format import ALLOC_DTYPE, Beton
from beton_tools.read.manifest import Manifest, manifest_path
from beton_tools.sources import Location, open_source
from beton_tools.sources.base import FileSource
from beton_tools.write.images import DAMAGED, KEPT
from beton_tools.write.writer import WriteOptions, write_beton
from tests.beton_tools.conftest import damaged
from tests.beton_tools.write.test_workers import Deadly

SMALL_PAGES = 1 << 16  # several pages from a few photographs
INLINE = WriteOptions(workers=0, page_size=SMALL_PAGES)


def pixels_of(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_the_same_bytes_for_any_number_of_workers(photo_folder, tmp_path):
    files = []
    for workers in (0, 1, 3):
        out = tmp_path / f"w{workers}" / "photos.beton"
        write_beton(out, open_source(photo_folder), WriteOptions(workers=workers, page_size=SMALL_PAGES))
        files.append((out.read_bytes(), manifest_path(out).read_bytes()))
    assert files[0] == files[1] == files[2]


def test_images_are_stored_with_their_pixels_size_and_label(photo_folder, photo_beton):
    manifest, beton = Manifest.load(manifest_path(photo_beton)), Beton.open(photo_beton)
    assert manifest.encodings == {"kept": 24}
    for i, name in enumerate(manifest.names):
        original = pixels_of((photo_folder / name).read_bytes())
        np.testing.assert_array_equal(pixels_of(beton.read_bytes(i)), original)
        assert (beton.heights[i], beton.widths[i]) == original.shape[:2]
        assert beton.labels[i] == manifest.classes.index(name.split("/")[0])


def test_ffcvs_reader_sees_the_tables_of_the_file(photo_beton):
    stock, ours = Reader(str(photo_beton)), Beton.open(photo_beton)
    assert stock.metadata.dtype == ours.metadata.dtype
    np.testing.assert_array_equal(stock.metadata, ours.metadata)
    np.testing.assert_array_equal(stock.alloc_table["ptr"], ours.pointers)
    np.testing.assert_array_equal(stock.alloc_table["size"], ours.sizes)
    assert stock.field_names == [f.name for f in ours.fields] == ["image", "label"]


def test_no_image_crosses_a_page_boundary_and_the_file_ends_with_its_table(photo_beton):
    beton = Beton.open(photo_beton)
    first, last = beton.pointers // SMALL_PAGES, (beton.pointers + beton.sizes - 1) // SMALL_PAGES
    np.testing.assert_array_equal(first, last)
    assert beton.num_pages >= 2
    assert beton.data_start % SMALL_PAGES == 0
    assert beton.data_end + len(beton) * ALLOC_DTYPE.itemsize == photo_beton.stat().st_size


class DeadlySource(FileSource):
    """The sixth image kills the process that reads it."""

    def locate(self, i: int) -> Location:
        return Deadly() if i == 5 else super().locate(i)


def test_an_image_that_kills_workers_is_a_bad_image(photo_folder, tmp_path):
    plain = open_source(photo_folder)
    source = DeadlySource(**{f.name: getattr(plain, f.name) for f in fields(plain)})
    with pytest.raises(UserError, match=r"n01440764_5\.JPEG: a worker died on it twice \(exit code -9\)"):
        write_beton(tmp_path / "a.beton", source, WriteOptions(workers=2))
    manifest = write_beton(tmp_path / "a.beton", source, WriteOptions(workers=2, on_error="skip"))
    assert [name for name, _ in manifest.skipped] == ["n01440764/n01440764_5.JPEG"]
    assert Beton.open(tmp_path / "a.beton").num_samples == 23


def test_a_data_set_without_a_valid_image_is_an_error(tmp_path):
    (tmp_path / "photos" / "a").mkdir(parents=True)
    (tmp_path / "photos" / "a" / "x.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"none of the 1 images could be stored. The first is .*x\.jpg: empty file"):
        write_beton(tmp_path / "a.beton", open_source(tmp_path / "photos"), WriteOptions(workers=0, on_error="skip"))


def test_a_subset_has_the_given_number_of_images_per_class(photo_folder, tmp_path):
    chosen = []
    for seed in (None, 5, 5, 6):
        out = tmp_path / f"{len(chosen)}.beton"
        options = WriteOptions(workers=0, subset_per_class=3, shuffle_seed=seed)
        manifest = write_beton(out, open_source(photo_folder), options)
        assert Counter(Beton.open(out).labels.tolist()) == {0: 3, 1: 3, 2: 3}
        chosen.append(list(manifest.names))
    assert chosen[0] == sorted(chosen[0])
    assert chosen[1] == chosen[2]
    assert set(chosen[1]) != set(chosen[3])


def test_a_complete_file_is_not_written_again_nor_replaced_without_overwrite(photo_folder, tmp_path):
    out = tmp_path / "photos.beton"
    source = open_source(photo_folder)
    first = write_beton(out, source, INLINE)
    before = out.stat()
    assert write_beton(out, source, INLINE) == first
    with pytest.raises(UserError, match="exists already"):
        write_beton(out, source, WriteOptions(workers=0, quality=50, lossless=False))
    assert out.stat().st_mtime_ns == before.st_mtime_ns
    write_beton(out, source, WriteOptions(workers=0, quality=50, lossless=False), overwrite=True)
    assert Beton.open(out).num_samples == 24
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photos", "photos.beton", "photos.beton.manifest.json"]


@pytest.mark.parametrize(
    "wrong", [{"quality": 0}, {"max_resolution": 0}, {"workers": -1}, {"page_size": 100_000}, {"on_error": "ignore"}]
)
def test_invalid_options_are_one_line(wrong):
    with pytest.raises(UserError, match=f"{next(iter(wrong)).replace('_', '.')} cannot be .*. Give "):
        WriteOptions(**wrong)


@pytest.mark.parametrize("out", ["", ".", "folder.beton"])
def test_a_folder_as_output_file_is_one_line(photo_folder, tmp_path, out):
    (tmp_path / "folder.beton").mkdir()
    path = tmp_path / out if out else Path()
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"is a folder\. Give a file name"):
            write_beton(path, open_source(photo_folder), INLINE, overwrite=overwrite)


def test_damaged_jpegs_of_an_earlier_run_are_named_after_a_resume(photo_folder, tmp_path):
    broken = photo_folder / "n02123045" / "n02123045_1.JPEG"
    broken.write_bytes(damaged(broken.read_bytes()))
    last = photo_folder / "n04008634" / "n04008634_7.JPEG"
    whole = last.read_bytes()
    last.write_bytes(b"no image")
    with pytest.raises(UserError, match="cannot be decoded"):
        write_beton(tmp_path / "a.beton", open_source(photo_folder), INLINE)
    last.write_bytes(whole)
    manifest = write_beton(tmp_path / "a.beton", open_source(photo_folder), INLINE)
    assert manifest.damaged == ["n02123045/n02123045_1.JPEG"]
    assert manifest.encodings == {KEPT: 23, DAMAGED: 1}
    assert Manifest.of_beton(tmp_path / "a.beton") == manifest
