"""The manifest comes back as it was saved, and a hostile one is an error."""

import base64
import json
import subprocess
import sys
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beton_tools import UserError
from beton_tools.manifest import Manifest, manifest_path, pack_names
from beton_tools.names import Names
from beton_tools.sources import open_source
from beton_tools.writer import WriteOptions, write_beton
from fastft.bench.dataset import IMAGENET_LENGTH, write_imagenet_length


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory, photo_jpegs: dict[str, list[bytes]]) -> dict[str, Any]:
    """A real manifest's JSON."""
    folder = tmp_path_factory.mktemp("manifest")
    for wnid, images in photo_jpegs.items():
        (folder / "photos" / wnid).mkdir(parents=True)
        (folder / "photos" / wnid / "a.JPEG").write_bytes(images[0])
    (folder / "photos" / "n01440764" / "broken.JPEG").write_bytes(b"")
    write_beton(folder / "a.beton", open_source(folder / "photos"), WriteOptions(workers=0, on_error="skip"))
    return json.loads(manifest_path(folder / "a.beton").read_text())


def load(tmp_path: Path, entries: Any) -> Manifest:
    path = tmp_path / "x.manifest.json"
    path.write_text(json.dumps(entries))
    return Manifest.load(path)


def test_saving_and_loading_changes_nothing(tmp_path: Path, entries: dict[str, Any]) -> None:
    manifest = load(tmp_path, entries)
    assert list(manifest.names) == ["n01440764/a.JPEG", "n02123045/a.JPEG", "n04008634/a.JPEG"]
    assert manifest.skipped == [("n01440764/broken.JPEG", "empty file")]
    manifest.save(tmp_path / "again.json")
    assert Manifest.load(tmp_path / "again.json") == manifest
    assert json.loads((tmp_path / "again.json").read_text()) == entries


def test_names_of_any_encoding_survive(tmp_path: Path, entries: dict[str, Any]) -> None:
    odd = ["", "Ärger/日本.jpg", b"latin1_\xe9.jpg".decode("utf-8", "surrogateescape")]
    manifest = replace(load(tmp_path, entries), num_samples=3, packed_names=pack_names(Names.of(odd)))
    manifest.save(tmp_path / "odd.json")
    assert list(Manifest.load(tmp_path / "odd.json").names) == odd


def test_a_million_names_stay_small(tmp_path: Path) -> None:
    names = Names.of(f"n{i // 1300:08d}/n{i // 1300:08d}_{i * 7919 % 100_000}.JPEG" for i in range(100_000))
    assert len(names.blob) + names.offsets.nbytes < 50 * len(names)
    assert names[99_999] == "n00000076/n00000076_92081.JPEG"


OPEN = """
import sys, time
from beton_tools.format import Beton
from beton_tools.manifest import Manifest

def kilobytes(which):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(which))

before, began = kilobytes("VmRSS"), time.process_time()
opened = Beton.open(sys.argv[1]), Manifest.of_beton(sys.argv[1])
print(time.process_time() - began, 1024 * (kilobytes("VmHWM") - before) - opened[0].metadata.nbytes)
"""


def test_a_file_of_imagenets_length_opens_with_its_manifest_in_half_a_second_and_100_mb(
    tmp_path: Path, entries: dict[str, Any]
) -> None:
    """CPU seconds, as the cores may be shared; bytes beyond the metadata. A tenth and three quarters of it are usual."""
    path = tmp_path / "long.beton"
    write_imagenet_length(path)
    table = np.tile(np.frombuffer(b"n01440764/n01440764_1234567.JPEG", np.uint8), (IMAGENET_LENGTH, 1))
    table[:, 20:27] = np.random.default_rng(0).integers(
        ord("0"), ord("9") + 1, (IMAGENET_LENGTH, 7), np.uint8
    )
    names = Names(table.tobytes(), table.shape[1] * np.arange(IMAGENET_LENGTH + 1))
    pages = list(range(1 << 31, (1 << 31) + 20_000))
    long = {"num_samples": IMAGENET_LENGTH, "page_crc32": pages, "packed_names": pack_names(names)}
    replace(load(tmp_path, entries), **long).save(manifest_path(path))
    output = subprocess.run(
        [sys.executable, "-c", OPEN, str(path)], check=True, stdout=subprocess.PIPE
    ).stdout
    seconds, size = map(float, output.split())
    assert seconds < 0.5
    assert size < 100e6
    opened = Manifest.of_beton(path)
    assert opened is not None and opened.names[7] == names[7]


def bomb(megabytes: int) -> str:
    return base64.b64encode(zlib.compress(bytes(megabytes << 20), 9)).decode()


LIES: dict[str, Any] = {
    "another format": {"format": "webdataset"},
    "another version": {"version": 2},
    "a negative count": {"num_samples": -1},
    "a huge count": {"num_samples": 1 << 70},
    "a count that is no number": {"num_samples": "3"},
    "a truth value for a count": {"file_size": True},
    "classes that are no texts": {"classes": [1, 2, 3]},
    "classes that are no list": {"classes": "n01440764"},
    "names for other classes": {"class_names": ["a"]},
    "checksums that are no numbers": {"page_crc32": ["x"]},
    "skipped that is no list": {"skipped": [["a"]]},
    "suffixes without a number": {"left_out": {".txt": "3"}},
    "no name table": {"names": None},
}
BROKEN_NAMES: dict[str, Any] = {
    "a wrong count": {"num_samples": 4},
    "a count that no file has": {"num_samples": 1 << 62},
    "an empty name table": {"names": {}},
    "a name table of numbers": {"names": {"text": 1, "lengths": [2]}},
    "no base64": {"names": {"text": "???", "lengths": "???"}},
    "no zlib": {"names": {"text": "aGVsbG8=", "lengths": "aGVsbG8="}},
    "a decompression bomb": {"names": {"text": bomb(64), "lengths": bomb(64)}},
    "text that is a bomb": {
        "names": {"text": bomb(64), "lengths": pack_names(Names.of(["a"] * 3))["lengths"]}
    },
}


@pytest.mark.parametrize("lie", LIES)
def test_a_manifest_that_lies_is_refused_in_one_line(
    tmp_path: Path, entries: dict[str, Any], lie: str
) -> None:
    with pytest.raises(UserError, match="not a manifest") as caught:
        load(tmp_path, entries | LIES[lie])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("lie", BROKEN_NAMES)
def test_names_that_are_broken_are_an_error_of_one_line_when_asked_for(
    tmp_path: Path, entries: dict[str, Any], lie: str
) -> None:
    manifest = load(tmp_path, entries | BROKEN_NAMES[lie])
    tracemalloc.start()
    with pytest.raises(UserError, match="names in the manifest are broken") as caught:
        _ = manifest.names
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert peak < 1 << 20


@pytest.mark.parametrize("missing", ["names", "classes", "num_samples", "format", "fingerprint"])
def test_a_manifest_that_lacks_something_is_refused(
    tmp_path: Path, entries: dict[str, Any], missing: str
) -> None:
    with pytest.raises(UserError, match="not a manifest"):
        load(tmp_path, {key: value for key, value in entries.items() if key != missing})


def test_no_manifest_is_none_and_no_json_is_an_error(tmp_path: Path) -> None:
    assert Manifest.of_beton(tmp_path / "a.beton") is None
    for content in (b"", b"\xff\xfe\0", b"[" * 100_000, b'{"format": NaN}', b"[]"):
        manifest_path(tmp_path / "a.beton").write_bytes(content)
        with pytest.raises(UserError, match="not a manifest"):
            Manifest.of_beton(tmp_path / "a.beton")


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.one_of(st.none(), st.integers(0, 10_000)),
)
def test_flipped_bytes_never_crash(
    tmp_path: Path, entries: dict[str, Any], flips: list[tuple[int, int]], cut: int | None
) -> None:
    data = bytearray(json.dumps(entries).encode())
    for offset, value in flips:
        data[offset % len(data)] = value
    path = tmp_path / "flipped.json"
    path.write_bytes(data[:cut])
    try:
        manifest = Manifest.load(path)
        assert len(list(manifest.names)) == manifest.num_samples
    except UserError as error:
        assert "\n" not in str(error)
