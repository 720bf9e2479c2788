"""A manifest is loaded as it was saved, and one with wrong contents is an error."""

import base64
import json
import os
import shutil
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from beton_tools import UserError
from beton_tools.base.names import Names
from beton_tools.read.beton_set import BetonSet
from beton_tools.read.manifest import MAX_FILE_BYTES, Manifest, manifest_path, pack_names, pack_tables
from beton_tools.sources import open_source
from beton_tools.write.writer import WriteOptions, write_beton


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


def test_saving_and_loading_changes_nothing(tmp_path, entries):
    manifest = load(tmp_path, entries)
    assert list(manifest.names) == ["n01440764/a.JPEG", "n02123045/a.JPEG", "n04008634/a.JPEG"]
    assert manifest.skipped == [("n01440764/broken.JPEG", "empty file")]
    manifest.save(tmp_path / "again.json")
    assert Manifest.load(tmp_path / "again.json") == manifest
    assert json.loads((tmp_path / "again.json").read_text()) == entries


def test_names_of_any_encoding_are_preserved(tmp_path, entries):
    odd = ["", "Ärger/日本.jpg", b"latin1_\xe9.jpg".decode("utf-8", "surrogateescape")]
    manifest = replace(load(tmp_path, entries), num_samples=3, tables=pack_tables(Names.of(odd), np.arange(3), None))
    manifest.save(tmp_path / "odd.json")
    assert list(Manifest.load(tmp_path / "odd.json").names) == odd


def bomb(megabytes: int) -> str:
    return base64.b64encode(zlib.compress(bytes(megabytes << 20), 9)).decode()


DEEP: Any = "x"
for _ in range(900):
    DEEP = {"a": DEEP}
LIES: dict[str, Any] = {
    "another format": {"format": "webdataset"},
    "a different number of class names": {"class_names": ["a"]},
    "a source nested 900 deep": {"source": {"root": DEEP}},
    "a missing value": {"fingerprint": ...},
}


def both(packed: Any) -> dict[str, Any]:
    return dict.fromkeys(("names", "groups"), packed)


BROKEN_TABLES: dict[str, Any] = {
    "a wrong count": {"num_samples": 4},
    "a count that no file can have": {"num_samples": 1 << 62},
    "empty tables": {"tables": {"names": {}, "contents": {"ids": ""}, "groups": {"text": ""}}},
    "tables that are none": {"tables": [1]},
    "not base64": {"tables": both({"text": "???", "lengths": "???"}) | {"contents": {"ids": "?"}}},
    "not zlib": {"tables": both({"text": "aGVsbG8=", "lengths": "aGVsbG8="}) | {"contents": 1}},
    "a decompression bomb": {"tables": both({"text": bomb(64), "lengths": bomb(64)})},
    "text that is a bomb": {"tables": both({"text": bomb(64), "lengths": pack_names(Names.of(["a"] * 3))["lengths"]})},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_manifest_with_a_wrong_value_is_refused_in_one_line(tmp_path, entries, lie):
    with pytest.raises(UserError, match="not a manifest") as caught:
        load(tmp_path, {k: v for k, v in (entries | LIES[lie]).items() if v is not ...})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("version", [3, "1", DEEP])
def test_another_version_of_the_format_is_refused_in_one_line(tmp_path, entries, version):
    with pytest.raises(UserError, match=r"has format version .*, expected 2. Use the fastft version") as caught:
        load(tmp_path, entries | {"version": version})
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("lie", BROKEN_TABLES)
@pytest.mark.parametrize("table", ["names", "contents", "groups"])
def test_a_damaged_table_is_one_line_when_it_is_used(tmp_path, entries, lie, table):
    grouped = entries | {"tables": entries["tables"] | {"groups": entries["tables"]["names"]}}
    manifest = load(tmp_path, grouped | BROKEN_TABLES[lie])
    if table == "contents" and "bomb" in lie:
        return
    tracemalloc.start()
    with pytest.raises(UserError, match=f"the {table} in the manifest are damaged") as caught:
        getattr(manifest, table)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert peak < 1 << 20


def test_a_manifest_of_version_1_is_read(tmp_path, entries):
    """It has neither content ids nor groups, and its names are an entry of their own."""
    later = ("tables", "dataset", "image_crc32")
    old = {k: v for k, v in entries.items() if k not in later} | {"version": 1, "names": entries["tables"]["names"]}
    manifest = load(tmp_path, old)
    assert list(manifest.names) == list(load(tmp_path, entries).names)
    assert manifest.contents is None and manifest.groups is None and manifest.dataset is None


def test_only_a_regular_file_of_limited_size_is_read(tmp_path):
    path = manifest_path(tmp_path / "a.beton")
    os.mkfifo(path)
    with pytest.raises(UserError, match="a FIFO, not a regular file"):
        Manifest.of_beton(tmp_path / "a.beton")
    path.unlink()
    with path.open("wb") as sparse:
        sparse.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(UserError, match="larger than the limit"):
        Manifest.of_beton(tmp_path / "a.beton")


def test_an_interrupted_save_leaves_nothing(tmp_path, entries, monkeypatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    manifest = load(tmp_path, entries)
    monkeypatch.setattr("os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        manifest.save(tmp_path / "new.json")
    assert not list(tmp_path.glob("new.json*"))


def test_no_manifest_is_none_and_invalid_json_is_an_error(tmp_path):
    assert Manifest.of_beton(tmp_path / "a.beton") is None
    for content in (b"", b"\xff\xfe\0", b"[" * 100_000, b'{"format": NaN}', b"[]"):
        manifest_path(tmp_path / "a.beton").write_bytes(content)
        with pytest.raises(UserError, match="not a manifest"):
            Manifest.of_beton(tmp_path / "a.beton")


@pytest.mark.parametrize("version", [1, 2])
def test_a_raw_file_beside_the_manifest_of_another_with_equal_tables_is_refused(tmp_path, version):
    """Raw images of one size have the same tables, whatever they show."""
    for number, name in enumerate("ab"):
        for kind in ("x", "y"):
            (tmp_path / name / kind).mkdir(parents=True)
            for i in range(4):
                pixels = np.random.default_rng([number, i]).integers(0, 256, (8, 8, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / name / kind / f"{i}.png")
        write_beton(tmp_path / f"{name}.beton", open_source(tmp_path / name), WriteOptions(workers=0))
    entries = json.loads(manifest_path(tmp_path / "a.beton").read_text())
    if version == 1:
        entries |= {"version": 1, "names": entries["tables"]["names"]}
        entries = {k: v for k, v in entries.items() if k not in ("tables", "dataset", "image_crc32")}
        manifest_path(tmp_path / "a.beton").write_text(json.dumps(entries))
    assert BetonSet.open(tmp_path / "a.beton").class_names == ["x", "y"]
    shutil.copy(manifest_path(tmp_path / "a.beton"), manifest_path(tmp_path / "b.beton"))
    with pytest.raises(UserError, match=r"b\.beton: its manifest belongs to another file"):
        BetonSet.open(tmp_path / "b.beton")


def test_opening_a_file_does_not_read_the_long_tables(tmp_path, entries):
    path = tmp_path / "x.manifest.json"
    load(tmp_path, entries).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b'"tables"') + 20])
    assert Manifest.load(path, tables=False).classes == entries["classes"]
    with pytest.raises(UserError, match="not a manifest"):
        Manifest.load(path)
