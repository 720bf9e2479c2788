"""Fuzz targets of tars and parquet files: hostile archives are refused in one line, or give images that can be read or not.

They start from the files in `corpus/`, whose names begin with what they are.
"""

import resource
from pathlib import Path

import pytest
from hypothesis import strategies as st

from beton_tools import UserError
from beton_tools.read.format import MAX_CLASSES
from beton_tools.sources import FileSpan, Source, open_source
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
def test_the_corpus_is_what_its_names_say(path):
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

TARS = [path.read_bytes() for path in sorted(CORPUS.glob("*.tar"))]
FIELDS = tuple(b"\0 07x\x80\xff")  # what numbers in tar headers begin or end with


def check_tar(folder: Path, data: bytes) -> None:
    (folder / "s.tar").write_bytes(data)
    check(folder / "s.tar")


test_tars, test_tars_at_length = fuzz_target(check_tar, damaged(TARS, 0, 2048, FIELDS))


# parquet --------------------------------------------------------------------------------------------------------------


PARQUETS = [path.read_bytes() for path in sorted(CORPUS.glob("*.parquet"))]
VARINTS = (0, 1, 2, 0x15, 0x16, 0x7F, 0x80, 0xFE, 0xFF)  # Thrift's numbers and field headers
# most of them in the footer, which begins 1.1 to 2.2 kB before the end
parquets = st.one_of(damaged(PARQUETS, -2200, -8, VARINTS), damaged(PARQUETS, 4, 500, VARINTS))


def check_parquet(folder: Path, data: bytes) -> None:
    (folder / "a.parquet").write_bytes(data)
    check(folder / "a.parquet")


test_parquets, test_parquets_at_length = fuzz_target(check_parquet, parquets)
