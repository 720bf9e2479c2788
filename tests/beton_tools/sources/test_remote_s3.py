"""Conversion from a real S3 server: the layouts of ImageNet, a changed object, and its errors."""

import io
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beton_tools import UserError
from beton_tools.sources import open_source, remote
from beton_tools.write.convert import convert_folder, convert_imagenet
from beton_tools.write.writer import WriteOptions
from tests.beton_tools.conftest import labelled, shard_of
from tests.beton_tools.write.test_convert import write_tars

s3fs = pytest.importorskip("s3fs")
pytest.importorskip("moto")
pytest.importorskip("flask_cors")

Jpegs = dict[str, list[bytes]]
ALONE = WriteOptions(workers=0)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """The address of moto's S3 server, a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", port]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline, answer = time.monotonic() + 60, 1
    while answer and server.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
        with socket.socket() as probe:
            answer = probe.connect_ex(("127.0.0.1", int(port)))
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Any]:
    """s3fs with an empty bucket named "photos"."""
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "user",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.0001)
    forget_file_systems()
    fs = s3fs.S3FileSystem(use_listings_cache=False)
    if fs.exists("photos"):
        fs.rm("photos", recursive=True)
    fs.mkdir("photos")
    yield fs
    forget_file_systems()


def forget_file_systems() -> None:
    """Their clients keep the credentials and the address that the environment had."""
    remote.file_system.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()


def upload(bucket: Any, folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            bucket.pipe(f"photos/{path.relative_to(folder)}", path.read_bytes())


def as_shards(folder: Path, jpegs: Jpegs, val: dict[str, tuple[str, bytes]]) -> None:
    folder.mkdir()
    (folder / "a-train-0.tar").write_bytes(shard_of(labelled(jpegs)))
    (folder / "a-val-0.tar").write_bytes(shard_of(labelled(jpegs)[:6]))
    (folder / "classes.txt").write_text("cup\ncat\nrocket\n")


@pytest.mark.parametrize("layout", [pytest.param(write_tars, marks=pytest.mark.slow), as_shards])
def test_imagenet_from_a_bucket_equals_imagenet_from_a_disk(bucket, tmp_path, photo_jpegs, val_images, layout):
    folder = tmp_path / "local"
    layout(folder, photo_jpegs, val_images)
    upload(bucket, folder)
    local = convert_imagenet(folder, tmp_path / "a", ALONE)
    ours = convert_imagenet("s3://photos", tmp_path / "b", ALONE)
    assert list(ours) == list(local) == ["train", "val"]
    for split in local:
        name = f"{split}.beton"
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        assert ours[split].classes == local[split].classes
        assert ours[split].class_names == local[split].class_names
        assert list(ours[split].names) == list(local[split].names)


def test_a_folder_that_could_not_be_listed_is_not_left_out(bucket, monkeypatch):
    """fsspec's glob leaves it out when S3 is too busy to list it, and its images would be missing."""
    for number in range(3):
        bucket.pipe(f"photos/{number}/s.tar", b"x")
    fs, busy = remote.file_system("s3"), ["photos/1"]
    truly_list = fs._lsdir

    async def list_folder(path, *args, **kwargs):
        if path.strip("/") in busy:
            busy.clear()
            raise OSError(16, "SlowDown")
        return await truly_list(path, *args, **kwargs)

    monkeypatch.setattr(fs, "_lsdir", list_folder)
    found = remote.expand_pattern(remote.RemotePath("s3://photos/*/s.tar"))
    assert [str(path) for path in found] == [f"s3://photos/{number}/s.tar" for number in range(3)]
    assert busy == []


@pytest.mark.slow
@pytest.mark.parametrize("url", ["s3://photos/shards/", "s3://photos/shards/*.tar", "s3://photos/shards/s-{0,1}.tar"])
def test_prefixes_and_patterns(bucket, tmp_path, photo_jpegs, url):
    for number in range(2):
        bucket.pipe(f"photos/shards/s-{number}.tar", shard_of(labelled(photo_jpegs)))
    source = open_source(url)
    assert (source.kind, len(source.names)) == ("webdataset", 48)
    assert source.names[24].startswith("s-1.tar/")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("s3://absent/s.tar", "no such file or folder"),
        ("s3://photos/absent-*.tar", "no file matches"),
        ("s3://photos/images", "no .parquet or .tar in it. Folders with images are read from local disks only"),
        ("s3://photos/paths.parquet", "Such a table and its images must be on a local disk"),
        ("s3://photos/broken.parquet", "cannot be read as parquet"),
    ],
)
def test_what_cannot_be_converted_is_one_line_and_code_2(bucket, tmp_path, url, reason, capsys):
    from fastft.cli import main

    bucket.pipe({f"photos/{name}": b"x" * 3000 for name in ("images/a.jpg", "broken.parquet")})
    table = io.BytesIO()
    pq.write_table(pa.table({"path": ["a.jpg"], "label": [0]}), table)
    bucket.pipe("photos/paths.parquet", table.getvalue())
    assert main(["convert", "folder", "--data", url, "--out", str(tmp_path / "o.beton")]) == 2
    errors = capsys.readouterr().err.strip()
    assert reason in errors
    assert errors.count("\n") == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_missing_credentials_and_packages_are_one_line(bucket, monkeypatch, tmp_path):
    bucket.pipe("photos/s.tar", b"x")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    forget_file_systems()
    with pytest.raises(
        UserError, match=r"access denied \(Unable to locate credentials\). Set AWS_ACCESS_KEY_ID .* FSSPEC_S3_ANON=true"
    ):
        open_source("s3://photos/s.tar")
    forget_file_systems()
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3")  # the class that was imported before
    with pytest.raises(UserError, match=r"s3:// files need the package s3fs. Run: pip install .*'s3fs>="):
        convert_folder("s3://photos/s.tar", tmp_path / "o.beton")
    assert list(tmp_path.iterdir()) == []
