"""Headers of tars and parquet files with false sizes give one line; nothing is allocated for what they claim."""

import gzip
import io
import tarfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beton_tools import UserError
from beton_tools.base.names import MAX_NAME_BYTES
from beton_tools.sources import Source, open_source
from tests.beton_tools.conftest import tar_of

SIZES = [1 << 31, 1 << 33, 1 << 40, (1 << 63) - 1, 1 << 70, -1, -1024, -(1 << 70)]
EXTENDED = {"x": "pax", "g": "global pax", "X": "Solaris pax", "L": "long name", "K": "long link"}
DATA = {"0": "file", "S": "sparse file", "Z": "unknown"}


def header(name: str, size: int, kind: str) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind.encode()
    return info.tobuf(tarfile.GNU_FORMAT)


def check_refused(path: Path, message: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=message) as caught:
            open_source(path)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("kind", "size"),
    # tarfile ignores a size of -1 of a sparse file, as it is rounded up to whole blocks
    [(kind, size) for kind in [*EXTENDED, *DATA] for size in SIZES if (kind, size) != ("S", -1)],
)
@pytest.mark.parametrize("first", [True, False])
def test_sizes_of_tar_members(tmp_path, kind, size, first):
    before = b"" if first else tar_of({"b.jpg": b"x", "b.cls": b"0"})[:2048]
    (tmp_path / "s.tar").write_bytes(before + header("a.jpg", size, kind) + bytes(4096))
    check_refused(tmp_path, r"s\.tar: ")


@pytest.mark.parametrize("size", SIZES)
def test_sizes_of_members_of_an_inner_tar(tmp_path, photo_jpegs, size):
    good = tar_of({"n02123045_0.JPEG": photo_jpegs["n02123045"][0]})
    inner = header("n01440764_0.JPEG", size, "0") + bytes(4096)
    (tmp_path / "train.tar").write_bytes(tar_of({"n01440764.tar": inner, "n02123045.tar": good}))
    check_refused(tmp_path, r"train\.tar: ")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("size", "9" * 30),
        ("size", "-5"),
        ("size", "-1024"),
        ("GNU.sparse.map", "0,0,x"),
        ("GNU.sparse.size", "x"),
        ("GNU.sparse.size", "9" * 5000),
        ("path", "a" * (2 << 20)),
    ],
    ids=lambda text: text[:12],
)
def test_pax_records(tmp_path, key, value):
    (tmp_path / "s.tar").write_bytes(pax_tar("a", **{key: value}))
    check_refused(tmp_path, r"s\.tar: ")


def pax_tar(name: str, **records: str) -> bytes:
    """A tar with one labelled image, whose header has the records."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for suffix, data in ((".jpg", b"x" * 600), (".cls", b"0")):
            info = tarfile.TarInfo(name + suffix)
            info.size, info.mtime, info.pax_headers = len(data), 1700000000.123456789, records
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.mark.parametrize("digits", [300, 32_000, 65_000])
def test_a_pax_header_of_digits_takes_no_quadratic_time(tmp_path, digits):
    """CVE-2024-6232: with 65,000 digits, tarfile's regular expression takes most of a minute."""
    (tmp_path / "s.tar").write_bytes(pax_tar("a", comment="9" * digits + "a" * 300) * 100)
    begin = time.process_time()
    check_refused(tmp_path, r"s\.tar: ")
    assert time.process_time() - begin < 2


def test_long_names_with_long_numbers_are_read(tmp_path):
    name = "/".join(["9" * 255] * 15)
    records = {"SCHILY.xattr.user.hash": "7" * 200, "LIBARCHIVE.creationtime": "1700000000.123456789"}
    (tmp_path / "s.tar").write_bytes(pax_tar(name, **records))
    assert list(open_source(tmp_path).names) == [f"s.tar/{name}.jpg"]
    (tmp_path / "s.tar").write_bytes(tar_of({f"{name}.jpg": b"x", f"{name}.cls": b"0"}))  # GNU's long names
    assert list(open_source(tmp_path).names) == [f"s.tar/{name}.jpg"]


def test_names_longer_than_a_path_can_be(tmp_path):
    name = "a" * MAX_NAME_BYTES
    (tmp_path / "s.tar").write_bytes(tar_of({f"{name}.jpg": b"x", f"{name}.cls": b"0"}))
    check_refused(tmp_path, "the name of an image has 4,106 bytes .*; rename it")


@pytest.mark.parametrize("damage", ["bomb", "size", "FIFO"])
def test_archives_of_the_devkit(tmp_path, damage):
    (tmp_path / "a.jpg").write_bytes(b"x")
    tar = {
        "bomb": bytes(300 << 20),
        "size": header("ILSVRC2012_validation_ground_truth.txt", 1 << 40, "0") + bytes(1024),
        "FIFO": tar_of({"other": b""}),
    }[damage]
    (tmp_path / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(gzip.compress(tar, 1))
    with pytest.raises(UserError, match=r"ILSVRC2012_devkit_t12\.tar\.gz: ") as caught:
        open_source(tmp_path)
    assert "\n" not in str(caught.value)


def write_parquet(path: Path, image: object, kind: pa.DataType, **options: object) -> None:
    pq.write_table(pa.table({"image": pa.array([image], kind), "label": [0]}), path, **options)


@pytest.mark.parametrize(
    ("value", "kind"), [(7, pa.int64()), (b"\xff", pa.binary()), ([1], pa.list_(pa.int64())), (None, pa.null())]
)
def test_paths_that_are_not_text_are_replaced_by_row_numbers(tmp_path, value, kind):
    struct = pa.struct([("bytes", pa.binary()), ("path", kind)])
    write_parquet(tmp_path / "a.parquet", {"bytes": b"x", "path": value}, struct)
    source = open_source(tmp_path)
    assert list(source.names) == ["a.parquet:0"]
    assert source.locate(0).read() == b"x"


def test_a_path_that_is_not_utf8_is_kept(tmp_path):
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    write_parquet(tmp_path / "a.parquet", {"bytes": b"x", "path": "cafe.jpg"}, struct, use_dictionary=False)
    data = (tmp_path / "a.parquet").read_bytes().replace(b"cafe.jpg", b"caf\xe9.jpg")
    (tmp_path / "a.parquet").write_bytes(data)
    assert list(open_source(tmp_path).names) == ["caf\udce9.jpg"]


def test_more_rows_than_the_file_has_bytes(tmp_path):
    rows = 1 << 20  # run-length encoded: 2 kB
    zeros = pa.array([b"x"] * rows, pa.binary())
    table = pa.table({"image": zeros, "label": pa.array([0] * rows, pa.int8())})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd", row_group_size=rows)
    assert (tmp_path / "a.parquet").stat().st_size < rows
    check_refused(tmp_path, r"a\.parquet: damaged parquet file, it cannot have 1048576 rows")


@pytest.mark.parametrize("column", ["label", "image.path", "path"])
def test_text_that_many_rows_share(tmp_path, column):
    """A dictionary stores it once: 200 GB of text in a file of 2 MB."""
    long, rows = pa.array(["a" * 2_000_000]), 100_000
    texts = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), long)
    names = pa.array([f"{k:x}" for k in range(rows)])
    image = pa.StructArray.from_arrays(
        [names.cast(pa.binary()), texts if column == "image.path" else names], ["bytes", "path"]
    )
    first = {"path": texts} if column == "path" else {"image": image}
    labels = texts if column == "label" else pa.array(np.zeros(rows, np.int64))
    path = tmp_path / "a.parquet"
    options = {"dictionary_pagesize_limit": 1 << 23, "compression": "none", "store_schema": False}
    pq.write_table(pa.table(first | {"label": labels}), path, **options)
    assert path.stat().st_size < 8 << 20
    check_refused(path, r"a\.parquet: 200,000,\d+,\d+ bytes of text in .*; the limit is")


def test_names_that_outgrow_their_dictionary_are_read(tmp_path):
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = [{"bytes": b"x", "path": f"{k}.jpg" if k % 3 else None} for k in range(5000)]
    table = pa.table({"image": pa.array(images, struct), "label": ["a", "b"] * 2500})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2000, dictionary_pagesize_limit=1000)
    source = open_source(tmp_path)
    assert source.names[4999] == "4999.jpg" and source.names[4998] == "a.parquet:4998"


def read_all(source: Source) -> None:
    for i in range(len(source.names)):
        source.locate(i).read()


def test_damage_to_any_part_of_a_footer(tmp_path):
    """A changed footer gives an index whose images can or cannot be read, or one line."""
    path = tmp_path / "a.parquet"
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    write_parquet(path, {"bytes": b"x" * 50, "path": "a.jpg"}, struct)
    good = path.read_bytes()
    refused = 0
    for at in range(len(good) - 8 - int.from_bytes(good[-8:-4], "little"), len(good), 3):
        path.write_bytes(good[:at] + bytes([good[at] ^ 0xFF]) + good[at + 1 :])
        try:
            read_all(open_source(path))
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
        except OSError:
            refused += 1
    assert refused > 100
