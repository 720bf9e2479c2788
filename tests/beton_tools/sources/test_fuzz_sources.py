"""Fuzz targets of tars and parquet files: hostile archives are refused in one line, or give images that can be read or not.

They start from the files in `corpus/`, whose names begin with what they are.
"""

from __future__ import annotations

import io
import resource
import tarfile
from pathlib import Path

import pytest
from hypothesis import strategies as st

from beton_tools import UserError
from beton_tools.read.format import MAX_CLASSES
from beton_tools.sources import FileSpan, Source, open_source
from tests.beton_tools.conftest import tar_of
from tests.beton_tools.fuzzing import damaged, fuzz_target, time_limit

CORPUS = Path(__file__).with_name("corpus")
VALID, HOSTILE = "valid-", "hostile-"
MAX_GROWTH = 256 << 10  # KiB of memory; pyarrow's pool alone takes 100 MB


@pytest.fixture(autouse=True, scope="module")
def little_memory():
    """The cases together must not take more memory than a large image."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MAX_GROWTH


def check(path: Path) -> None:
    with time_limit():
        try:
            source = open_source(path)
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 2000
            return
        check_source(source, path.stat().st_size)


def check_source(source: Source, size: int) -> None:
    assert 0 < len(source.names) == len(source.labels) <= size
    assert source.labels.min() >= 0 and source.labels.max() < len(source.classes) <= MAX_CLASSES
    for i in range(len(source.names)):
        location = source.locate(i)
        try:
            data = location.read()
        except OSError as error:
            assert "\n" not in str(error)
            continue
        assert isinstance(data, bytes)
        if isinstance(location, FileSpan):
            assert len(data) == location.length <= size - location.offset


@pytest.mark.parametrize("path", sorted(CORPUS.iterdir()), ids=lambda path: path.name)
def test_the_corpus_is_what_its_names_say(path: Path) -> None:
    check(path)
    if path.name.startswith(VALID):
        source = open_source(path)
        assert all(source.locate(i).read() for i in range(len(source.names)))
        return
    assert path.name.startswith(HOSTILE)
    with pytest.raises((UserError, OSError)):
        source = open_source(path)
        for i in range(len(source.names)):
            source.locate(i).read()


# tars -----------------------------------------------------------------------------------------------------------------

KINDS = [b"0", b"\0", b"1", b"2", b"5", b"7", b"x", b"g", b"X", b"L", b"K", b"S", b"D", b"Z"]
NAMES = ["a.jpg", "a.cls", "a.json", "b.png", "n01440764.tar", "n01440764_1.JPEG", "d/c.jpg", "x" * 99, "caf\udce9.jpg"]
TEXTS = [b"0", b"1", b"7 \n", b"1e9", b'{"label": 3}', b"-1", str(MAX_CLASSES).encode(), b"[" * 300]
KEYS = ["path", "size", "GNU.sparse.size", "GNU.sparse.map", "GNU.sparse.major", "GNU.sparse.name", "hdrcharset", "uid"]
sizes = st.one_of(st.integers(-600, 5000), st.sampled_from([1 << b for b in (20, 31, 33, 62, 63, 64, 87)]))
records = st.builds(
    lambda key, value, false_length: _record(key, value, false_length),
    st.sampled_from(KEYS),
    st.one_of(sizes.map(str), st.sampled_from([*NAMES, "0,1,x", "nan", "BINARY", ""])),
    st.sampled_from([0, 0, 0, 0, 1, -1, 10**6]),
)


def _record(key: str, value: str, false_length: int) -> bytes:
    """A pax record, with a length that is wrong by `false_length`."""
    body = f" {key}={value}\n".encode("utf-8", "surrogateescape")
    length = len(body) + 2
    return str(length + false_length).encode() + body


@st.composite
def tars(draw: st.DrawFn) -> bytes:
    """Members with true or false sizes, with pax records, labels or nested tars as contents; damaged or not."""
    out = io.BytesIO()
    for _ in range(draw(st.integers(0, 6))):
        kind = draw(st.sampled_from(KINDS))
        contents = st.one_of(st.sampled_from(TEXTS), st.binary(max_size=600), st.just(INNER))
        data = draw(st.lists(records, max_size=4).map(b"".join) if kind in b"xgX" else contents)
        info = tarfile.TarInfo(draw(st.sampled_from(NAMES)))
        info.type, info.size = kind, draw(st.one_of(st.just(len(data)), st.just(len(data)), sizes))
        out.write(info.tobuf(tarfile.GNU_FORMAT, errors="surrogateescape"))
        out.write(data + bytes(-len(data) % 512))
    out.write(bytes(draw(st.sampled_from([0, 512, 1024, 10240]))))
    return out.getvalue()


INNER = tar_of({"n01440764_0.JPEG": b"x" * 10})
TARS = [path.read_bytes() for path in sorted(CORPUS.glob("*.tar"))]
FIELDS = tuple(b"\0 07x\x80\xff")  # what numbers in tar headers begin or end with
any_tar = st.one_of(tars(), damaged(TARS, 0, 2048, FIELDS))


def check_tar(folder: Path, data: bytes) -> None:
    (folder / "s.tar").write_bytes(data)
    check(folder / "s.tar")


test_tars, test_tars_at_length = fuzz_target(check_tar, any_tar)


# parquet --------------------------------------------------------------------------------------------------------------


PARQUETS = [path.read_bytes() for path in sorted(CORPUS.glob("*.parquet"))]
VARINTS = (0, 1, 2, 0x15, 0x16, 0x7F, 0x80, 0xFE, 0xFF)  # Thrift's numbers and field headers
# most of them in the footer, which begins 1.1 to 2.2 kB before the end
parquets = st.one_of(damaged(PARQUETS, -2200, -8, VARINTS), damaged(PARQUETS, 4, 500, VARINTS))


def check_parquet(folder: Path, data: bytes) -> None:
    (folder / "a.parquet").write_bytes(data)
    check(folder / "a.parquet")


test_parquets, test_parquets_at_length = fuzz_target(check_parquet, parquets)
