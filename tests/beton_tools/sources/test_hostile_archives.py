"""Archives with false sizes or labels give one line; nothing is allocated for what they claim."""

import gzip
import io
import json
import tarfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beton_tools import UserError
from beton_tools.base.names import MAX_NAME_BYTES
from beton_tools.read.format import MAX_CLASSES
from beton_tools.sources import open_source, tars
from tests.beton_tools.conftest import tar_of
from tests.refusals import refuses


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


def pax_tar(name: str, **records: str) -> bytes:
    """A tar with one labelled image, whose header has the records."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for suffix, data in ((".jpg", b"x" * 600), (".cls", b"0")):
            info = tarfile.TarInfo(name + suffix)
            info.size, info.mtime, info.pax_headers = len(data), 1700000000.123456789, records
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


class EndlessTar(io.RawIOBase):
    """A hostile server's answer: headers of files of `size` bytes, as many as are read."""

    at = 0

    def __init__(self, size: int) -> None:
        self.size = size

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = 0) -> int:
        self.at = offset if whence == 0 else 1 << 60
        return self.at

    def read(self, size: int = -1) -> bytes:
        self.at += size
        return header(f"{self.at}.jpg", self.size, "0")


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (0, "1,001 members have 0 bytes together. Give an archive with images"),
        (1, "1,001 members have 1,001 bytes together. Give an archive with images"),
        (600, "more than 3,000,000 members, or 0 MiB of names. Divide it into several archives"),
    ],
)
def test_headers_without_end_are_refused_early(monkeypatch, size, message):
    monkeypatch.setattr(tars, "FIRST_MEMBERS", 1000)
    monkeypatch.setattr(tars, "MAX_NAMES", 20_000)
    tracemalloc.start()
    with refuses(f"endless.tar: {message}"):
        list(tars.members(EndlessTar(size), Path("endless.tar")))
    assert tracemalloc.get_traced_memory()[1] < 2 << 20
    tracemalloc.stop()


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
    check_refused(tmp_path, "an image's name has 4,106 bytes .*. Rename it")


@pytest.mark.parametrize("damage", ["bomb", "size", "FIFO"])
def test_archives_of_the_devkit(tmp_path, damage):
    (tmp_path / "a.jpg").write_bytes(b"x")
    tar = {
        "bomb": bytes(300 << 20),
        "size": header("ILSVRC2012_validation_ground_truth.txt", 1 << 40, "0") + bytes(1024),
        "FIFO": tar_of({"other": b""}),
    }[damage]
    (tmp_path / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(gzip.compress(tar, 1))
    with refuses(r"ILSVRC2012_devkit_t12\.tar\.gz: "):
        open_source(tmp_path)


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
    check_refused(path, r"a\.parquet: 200,000,\d+,\d+ bytes of text in .*, but the limit is")


def test_names_that_outgrow_their_dictionary_are_read(tmp_path):
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = [{"bytes": b"x", "path": f"{k}.jpg" if k % 3 else None} for k in range(5000)]
    table = pa.table({"image": pa.array(images, struct), "label": ["a", "b"] * 2500})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2000, dictionary_pagesize_limit=1000)
    source = open_source(tmp_path)
    assert source.names[4999] == "4999.jpg" and source.names[4998] == "a.parquet:4998"


TOO_LARGE = [MAX_CLASSES, 10**9, 10**12, 1 << 63, 1 << 64]


LABELS = [*map(str, TOO_LARGE), "-1", "1.0", "1e3", "true", "null", "[1]", "9" * 5000, "NaN", "٣"]
FILES = [
    {"x.txt": b"a"}, {"a.cls": b"cat"}, *({"a.cls": text.encode()} for text in LABELS),
    *({"a.json": f'{{"label": {text}}}'.encode()} for text in LABELS),
    *({"a.json": text} for text in (b"", b"{}", b"[]", b"[" * 100_000, b'{"a":' * 100_000, b"\xed\xa0\x80")),
]  # fmt: skip


@pytest.mark.parametrize("files", FILES, ids=lambda files: str(files)[:30])
def test_label_files(tmp_path, files):
    (tmp_path / "s.tar").write_bytes(tar_of({"a.jpg": b"x", **files}))
    check_refused(tmp_path, r"s\.tar: sample a has no (usable )?label")


@pytest.mark.parametrize("suffix", ["cls", "json"])
def test_oversized_label_files(tmp_path, suffix):
    (tmp_path / "s.tar").write_bytes(tar_of({"a.jpg": b"x", f"a.{suffix}": b" " * (2 << 20)}))
    check_refused(tmp_path, "2,097,152 bytes in its label file")


@pytest.mark.parametrize("label", TOO_LARGE[:-1])
def test_parquet_labels(tmp_path, label):
    kind = pa.uint64() if label >= 1 << 63 else pa.int64()
    pq.write_table(pa.table({"image": [b"x", b"y"], "label": pa.array([0, label], kind)}), tmp_path / "a.parquet")
    check_refused(tmp_path, rf"a\.parquet: label {label} is too large. Expected a number from 0 to {MAX_CLASSES - 1}")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (pa.array([0, -3], pa.int8()), "label -3 is negative"),
        (pa.array([True, False]), "label has the type bool. Labels must be integers or names"),
        (pa.array([0.0, 1.0]), "label has the type double. Labels must be integers or names"),
        (pa.array(["0", None]), "row 3: no label"),
        (pa.array([0, None], pa.int64()), "1 rows have no label"),
    ],
)
def test_parquet_labels_that_are_not_class_numbers(tmp_path, labels, message):
    pq.write_table(pa.table({"image": [b"x", b"y"], "label": labels}), tmp_path / "a.parquet")
    check_refused(tmp_path, message)


@pytest.mark.parametrize("images", [{"image": [b"x", b"y"]}, {"path": ["a.jpg", "b.jpg"]}], ids=["bytes", "paths"])
@pytest.mark.parametrize(
    "labels",
    [
        pa.array([[0.5], [1.0]]),
        pa.array([{"a": 1}, {"a": 2}]),
        pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int64())),
        pa.array([[["a"]], [["b"]]]),
        pa.array([b"a", b"b"]),
    ],
    ids=lambda labels: str(labels.type),
)
def test_labels_of_another_type_are_named_in_every_table(tmp_path, images, labels):
    pq.write_table(pa.table(images | {"label": labels}), tmp_path / "a.parquet")
    check_refused(tmp_path, r"a\.parquet: label has the type .*. Labels must be integers or names")


def test_the_largest_label_is_accepted(tmp_path):
    (tmp_path / "s.tar").write_bytes(tar_of({"a.jpg": b"x", "a.cls": f" {MAX_CLASSES - 1}\n".encode()}))
    assert len(open_source(tmp_path).classes) == MAX_CLASSES


def test_a_list_of_too_many_classes(tmp_path):
    (tmp_path / "s.tar").write_bytes(tar_of({"a.jpg": b"x", "a.cls": b"0"}))
    (tmp_path / "classes.txt").write_text("x\n" * (MAX_CLASSES + 1))
    with pytest.raises(UserError, match=r"1,048,577 classes\. Give at most 1,048,576"):
        open_source(tmp_path)


@pytest.mark.parametrize("number", ["9" * 5000, "²", "٣", "-1", "1000"], ids=lambda n: n[:4])
def test_class_numbers_of_a_text_file(tmp_path, number):
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "val.txt").write_text(f"a.jpg {number}\n", encoding="utf-8")
    with refuses(r"val\.txt: (class|label)"):
        open_source(tmp_path, classes=["cat", "dog"])


def features(names: Any) -> str:
    return json.dumps({"info": {"features": {"label": {"names": names}}}})


@pytest.mark.parametrize(
    "metadata",
    ["[" * 100_000, '{"a":' * 100_000, "[1]", "null", b"\xff", "", features("ab"), features([]), '{"info": 3}'],
    ids=lambda m: str(m)[:12],
)
def test_unusable_metadata_of_hugging_face_is_ignored(tmp_path, metadata):
    table = pa.table({"image": [b"x"], "label": [1]}).replace_schema_metadata({"huggingface": metadata})
    pq.write_table(table, tmp_path / "a.parquet")
    assert open_source(tmp_path).classes == ("0", "1")


def test_class_names_of_hugging_face_need_not_be_valid_text(tmp_path):
    table = pa.table({"image": [b"x"], "label": [1]})
    names = '{"info": {"features": {"label": {"names": ["a\\ud800", [1]]}}}}'
    pq.write_table(table.replace_schema_metadata({"huggingface": names}), tmp_path / "a.parquet")
    assert open_source(tmp_path).classes == ("a?", "[1]")
