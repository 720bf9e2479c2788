"""A source file that is truncated, replaced or rewritten during a conversion gives one line that names it."""

import os
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beton_tools.sources import FileSpan, Source, base, open_source
from beton_tools.sources.base import Stamp, stamp_of
from beton_tools.write.writer import WriteOptions, write_beton
from tests.beton_tools.conftest import labelled, shard_of, tar_of
from tests.refusals import refuses

Jpegs = dict[str, list[bytes]]


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def replace(path: Path) -> None:
    other = path.with_suffix(".other")
    other.write_bytes(path.read_bytes() + b"\0")
    other.replace(path)


def overwrite(path: Path) -> None:
    status = path.stat()
    path.write_bytes(bytes(status.st_size))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1000))


def delete(path: Path) -> None:
    path.unlink()


CHANGE = pytest.mark.parametrize("change", [truncate, replace, overwrite, delete])


def tar(folder: Path, jpegs: Jpegs) -> Path:
    path = folder / "n01440764.tar"
    path.write_bytes(tar_of({f"{i}.JPEG": data for i, data in enumerate(jpegs["n01440764"])}))
    return path


def shard(folder: Path, jpegs: Jpegs) -> Path:
    path = folder / "s.tar"
    path.write_bytes(shard_of(labelled(jpegs)))
    return path


def parquet(folder: Path, jpegs: Jpegs) -> Path:
    path = folder / "a.parquet"
    images = jpegs["n01440764"]
    pq.write_table(pa.table({"image": images, "label": [0] * len(images)}), path, row_group_size=2)
    return path


@CHANGE
@pytest.mark.parametrize("make", [tar, shard, parquet])
def test_archives(tmp_path, photo_jpegs, make, change):
    path = make(tmp_path, photo_jpegs)
    source = open_source(path)
    change(path)
    expected = "No such file" if change is delete else f"{path} changed after it was indexed"
    with refuses(rf"cannot be read \({expected}"):
        write_beton(tmp_path / "o.beton", source, WriteOptions(workers=0))


@CHANGE
def test_stamps_are_those_of_the_indexed_archive(tmp_path, photo_jpegs, change):
    """Otherwise a conversion of the old contents would be resumed with the new ones."""
    path = tar(tmp_path, photo_jpegs)
    source: Source = open_source(path)
    before = source.stamps(source.labels)
    change(path)
    assert (source.stamps(source.labels) == before).all()


@pytest.mark.parametrize("change", [truncate, overwrite])
def test_a_file_that_changes_while_it_is_read(tmp_path, monkeypatch, change):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"x" * 1000)

    def stamp_and_change(file: IO[bytes]) -> Stamp:
        stamp = stamp_of(file)
        if file.tell() == 0:  # not read yet
            change(path)
        return stamp

    monkeypatch.setattr(base, "stamp_of", stamp_and_change)
    with pytest.raises(OSError, match=r"a\.jpg changed while it was being read"):
        FileSpan(str(path)).read()


def test_a_row_group_that_changes_while_it_is_read(tmp_path, photo_jpegs, monkeypatch):
    path = parquet(tmp_path, photo_jpegs)
    source = open_source(path)
    original = pq.ParquetFile.read_row_group

    def read_and_change(self: pq.ParquetFile, *args: object, **options: object) -> pa.Table:
        table = original(self, *args, **options)
        overwrite(path)
        return table

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", read_and_change)
    with pytest.raises(OSError, match=r"a\.parquet changed while it was being read"):
        source.locate(0).read()
