"""Files at URLs are converted as local ones, through broken connections; what cannot work is one line."""

import multiprocessing.util
import re
import tempfile
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beton_tools import UserError
from beton_tools.read.manifest import manifest_path
from beton_tools.sources import open_source, remote
from beton_tools.sources.remote import (
    BLOCK,
    RemoteError,
    RemotePath,
    expand_pattern,
    read_range,
    source_path,
    stamp_of_url,
)
from beton_tools.write.convert import convert_folder, convert_imagenet
from beton_tools.write.writer import WriteOptions, write_beton
from tests.beton_tools.conftest import labelled, shard_of, tar_of
from tests.beton_tools.file_server import FileServer, serve, touch_later
from tests.refusals import refuses

pytest.importorskip("aiohttp")
MemoryFileSystem = pytest.importorskip("fsspec.implementations.memory").MemoryFileSystem

Jpegs = dict[str, list[bytes]]
ALONE = WriteOptions(workers=0)
DATA = bytes(range(256)) * 100


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.0001)
    (tmp_path / "www").mkdir()
    with serve(tmp_path / "www") as running:
        yield running


def shards(folder: Path, jpegs: Jpegs) -> None:
    """Three shards of WebDataset, labels before images in one of them, and a list of classes."""
    for number in range(3):
        shard = shard_of(labelled(jpegs)[number::3], labels_first=number == 0)
        (folder / f"s-{number:02d}.tar").write_bytes(shard)
    (folder / "classes.txt").write_text("cup\ncat\nrocket\n")


def parquet(path: Path, jpegs: Jpegs, group: int = 4) -> None:
    images, labels = zip(*labelled(jpegs), strict=True)
    images = [{"bytes": data, "path": f"{i}.jpg"} for i, data in enumerate(images)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(
        pa.table({"image": pa.array(images, kind), "label": labels}),
        path,
        row_group_size=group,
        use_dictionary=False,
        compression="none",
    )


@pytest.mark.parametrize(("name", "workers"), [("n01440764.tar", 0), ("s-{00..02}.tar", 2), ("a.parquet", 0)])
def test_a_conversion_equals_that_of_local_files(server, tmp_path, photo_jpegs, name, workers, monkeypatch):
    shards(server.folder, photo_jpegs)
    parquet(server.folder / "a.parquet", photo_jpegs)
    class_tar = {f"{i}.JPEG": data for i, data in enumerate(photo_jpegs["n01440764"])}
    (server.folder / "n01440764.tar").write_bytes(tar_of(class_tar))
    local = convert_folder(server.folder / name.replace("{00..02}", "*"), tmp_path / "local.beton", ALONE)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    multiprocessing.util.get_temp_dir()  # made once in a process, so not in this test's folder
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    options = WriteOptions(workers=workers)
    ours = convert_folder(f"{server.url}/{name}", tmp_path / "remote.beton", options)
    assert (tmp_path / "remote.beton").read_bytes() == (tmp_path / "local.beton").read_bytes()
    assert (ours.classes, list(ours.names)) == (local.classes, list(local.names))
    stored = [path for path in temporary.rglob("*") if path.is_file()]
    assert not stored and len(list(tmp_path.glob("remote*"))) == 2, "the archives are stored nowhere"


def test_a_server_that_denies_access_to_absent_files_is_read_without_them(server, photo_jpegs):
    """S3 and Google do so to those who may read but not list."""
    (server.folder / "s-00.tar").write_bytes(shard_of(labelled(photo_jpegs)))
    server.absent = 403
    assert open_source(f"{server.url}/s-00.tar").classes == ("0", "1", "2")
    with refuses("s-01.tar: .*access denied"):
        open_source(f"{server.url}/s-01.tar")


@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_a_parquet_file_that_changes_ends_the_conversion(server, tmp_path, photo_jpegs, on_error):
    parquet(server.folder / "a.parquet", photo_jpegs)
    source = open_source(f"{server.url}/a.parquet")
    parquet(server.folder / "a.parquet", photo_jpegs, group=6)
    with refuses(r"a\.parquet: changed after it was indexed. Run the same command again"):
        write_beton(tmp_path / "o.beton", source, WriteOptions(workers=0, on_error=on_error))


def test_connections_that_break_are_made_again(server, tmp_path, photo_jpegs):
    shards(server.folder, photo_jpegs)
    convert_folder(server.folder, tmp_path / "local.beton", ALONE)
    server.break_every = 3
    convert_folder(f"{server.url}/s-{{00..02}}.tar", tmp_path / "remote.beton", ALONE)
    assert server.responses > 6
    assert (tmp_path / "remote.beton").read_bytes() == (tmp_path / "local.beton").read_bytes()


@pytest.mark.parametrize("on_error", ["fail", "skip"])
@pytest.mark.parametrize(("name", "image"), [("s-00.tar", r"000000\.(cls|jpg)"), ("a.parquet", r"0\.jpg")])
def test_a_server_that_stays_away_ends_the_conversion_and_no_image_is_skipped(
    server, tmp_path, photo_jpegs, on_error, name, image
):
    shards(server.folder, photo_jpegs)
    parquet(server.folder / "a.parquet", photo_jpegs)
    source, out = open_source(f"{server.url}/{name}"), tmp_path / "o.beton"
    server.status = 503
    with refuses(rf"{image}.*{name}: .*503.*, 8 attempts"):
        write_beton(out, source, WriteOptions(workers=0, on_error=on_error))
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ranges": False}, "the server cannot send a file in parts"),
        ({"trick": "gzip"}, "the server cannot send a file in parts"),
        ({"status": 403}, "access denied"),
        ({"status": 404}, "no such file or folder"),
        ({"status": 500}, "500.*8 attempts"),
    ],
)
def test_what_a_server_refuses_is_one_line(server, photo_jpegs, change, reason):
    shards(server.folder, photo_jpegs)
    vars(server).update(change)
    with pytest.raises(UserError, match=rf"s-00\.tar: .*{reason}") as caught:
        open_source(f"{server.url}/s-00.tar?signature=secret")
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)
    assert server.responses <= 1  # of which the client read no more than the headers


def test_a_web_server_lists_no_files():
    with refuses("Use braces"):
        open_source("https://h/*.tar")


@pytest.fixture(params=["http", "s3"])
def served(request: pytest.FixtureRequest, server: FileServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[RemotePath]:
    """A file of the server, which answers as S3 does."""
    (server.folder / "bucket").mkdir()
    (server.folder / "bucket" / "a.tar").write_bytes(DATA)
    if request.param == "s3":
        pytest.importorskip("s3fs").S3FileSystem.clear_instance_cache()
        for name, value in {"ENDPOINT_URL": server.url, "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
    remote.file_system.cache_clear()
    yield RemotePath("s3://bucket/a.tar" if request.param == "s3" else f"{server.url}/bucket/a.tar")
    remote.file_system.cache_clear()


def test_no_more_is_received_than_was_asked_for(served, server):
    stamp = stamp_of_url(served)
    server.trick = "endless"
    assert read_range(served, stamp, 300, 5000) == DATA[300:5000]
    assert server.sent < 64 << 20


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"trick": "other range"}, r"bytes 301-5000 arrived instead of 300-4999, 8 attempts"),
        ({"trick": "other total"}, "changed after it was indexed"),
        ({"ranges": False}, "cannot send a file in parts"),
    ],
)
def test_a_server_that_sends_other_bytes_is_refused(served, server, change, reason):
    stamp = stamp_of_url(served)
    vars(server).update(change)
    with refuses(reason):
        read_range(served, stamp, 300, 5000)


def test_another_version_of_a_file_is_refused(served, server):
    stamp = stamp_of_url(served)
    touch_later(server.folder / "bucket" / "a.tar")
    with refuses("changed after it was indexed"):
        read_range(served, stamp, 300, 5000)


@pytest.mark.parametrize("silent_after", [0, 0.5])
def test_a_server_that_falls_silent_is_asked_again_and_then_given_up(served, server, monkeypatch, silent_after):
    """The libraries' own attempts would multiply ours: S3 was asked 125 times, for half an hour."""
    monkeypatch.setattr(
        remote, "NO_ANSWER", 0.3
    )  # after 0.1, an attempt may end before a busy machine's server sees it
    monkeypatch.setattr(remote, "ATTEMPTS", 3)
    stamp = stamp_of_url(served)
    server.silent, server.silent_after = 2, silent_after
    assert read_range(served, stamp, 300, 5000) == DATA[300:5000]
    server.silent, server.requests = 100, 0
    with refuses(rf"a\.tar: cannot be read \(.*{remote.ATTEMPTS} attempts"):
        read_range(served, stamp, 300, 5000)
    assert server.requests == remote.ATTEMPTS


def test_a_server_that_sends_a_byte_now_and_then_is_given_up_within_the_documented_time(served, server, monkeypatch):
    """Each byte ends the wait for data, so that 4 MiB would take 48 days at a byte a second."""
    monkeypatch.setattr(remote, "NO_ANSWER", 0.5)
    monkeypatch.setattr(remote, "ATTEMPTS", 3)
    stamp = stamp_of_url(served)
    server.drip, began = 0.02, time.monotonic()
    with refuses(r"a\.tar: cannot be read \(only [\d.]+ B arrived in \d+ s, 3 attempts"):
        read_range(served, stamp, 300, 5000)
    assert 1.4 < time.monotonic() - began < 4  # three times half a second, plus pauses
    server.drip = 0.0
    assert read_range(served, stamp, 300, 5000) == DATA[300:5000]


def test_a_slow_server_is_waited_for_while_it_sends_enough(served, server, monkeypatch):
    monkeypatch.setattr(remote, "NO_ANSWER", 0.2)
    monkeypatch.setattr(remote, "LEAST_RATE", 20)
    stamp = stamp_of_url(served)
    server.drip = 0.01
    assert read_range(served, stamp, 300, 400) == DATA[300:400]  # a second


def test_while_a_slow_server_is_indexed_lines_tell_how_much_has_arrived(server, tmp_path, photo_jpegs, monkeypatch):
    monkeypatch.setattr(remote, "TOLD_EVERY", 0.2)
    monkeypatch.setattr(remote, "NO_ANSWER", 0.5)
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    shards(server.folder, photo_jpegs)
    server.drip = 0.02
    lines: list[str] = []
    with refuses("only .* arrived in .*, 2 attempts"):
        convert_folder(f"{server.url}/s-00.tar?signature=secret", tmp_path / "o.beton", ALONE, say=lines.append)
    assert len(lines) >= 3 and all(re.search(r"s-00\.tar: indexing, [\d.]+ \w+ received", line) for line in lines)
    assert "attempt 1 of 2 failed: only" in lines[-1] and "secret" not in "".join(lines)


def error_document(code: str, message: str = "") -> bytes:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()


@pytest.mark.parametrize(
    ("status", "document", "headers", "reason"),
    [
        (403, error_document("RequestTimeTooSkewed"), {}, "this machine's clock is wrong"),
        (403, error_document("SignatureDoesNotMatch"), {}, "the signature does not match"),
        (403, error_document("InvalidAccessKeyId"), {}, "does not know the access key"),
        (403, error_document("InvalidObjectState"), {}, "the object is archived. Restore it"),
        (403, error_document("AccessDenied", "Request has expired"), {}, "have expired"),
        (400, error_document("ExpiredToken"), {}, "have expired"),
        (403, b"", {"Date": formatdate(usegmt=True, timeval=0)}, r"clock is [\d,]+ minutes ahead of the server's"),
        (403, error_document("AccessDenied", "Access Denied"), {}, r"access denied \(HTTP status 403\)"),
        (
            301,
            error_document("PermanentRedirect"),
            {"x-amz-bucket-region": "eu-central-1"},
            "region eu-central-1. Set AWS",
        ),
    ],
)
def test_a_refusal_says_why(served, server, status, document, headers, reason):
    stamp = stamp_of_url(served)
    server.status, server.document, server.headers, server.requests = status, document, headers, 0
    with refuses(rf"a\.tar: cannot be read \(.*{reason}"):
        read_range(served, stamp, 300, 5000)
    if not headers.get("x-amz-bucket-region"):  # where there is one, the AWS client asks again by itself
        assert server.requests == 1
    with refuses(rf"a\.tar: cannot be read \(.*{reason}"):
        stamp_of_url(served)


def test_a_bucket_that_is_busy_is_asked_as_often_as_a_web_server(served, server):
    stamp, server.status, server.requests = stamp_of_url(served), 503, 0
    with refuses(rf"a\.tar: cannot be read \(.*{remote.ATTEMPTS} attempts"):
        read_range(served, stamp, 300, 5000)
    assert server.requests == remote.ATTEMPTS


def test_a_part_that_is_too_large_is_not_requested():
    path = RemotePath("https://host/a.tar")
    with pytest.raises(RemoteError, match=r"2,147,483,649 bytes would be read at once"):
        read_range(path, (1 << 60, 0), 0, (2 << 30) + 1)


def test_a_redirect_to_no_url_is_one_line_without_secrets(server):
    server.trick = "redirect"
    with pytest.raises(UserError, match=r"s-00\.tar: cannot be read \(.*[rR]edirect") as caught:
        open_source(f"{server.url}/s-00.tar?signature=secret")
    assert not {"secret", "password"} & set(re.findall(r"\w+", str(caught.value)))


def test_a_server_that_is_not_there_is_one_line(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.0001)
    with pytest.raises(UserError, match=r"127\.0\.0\.1.*, 8 attempts\)$"):
        open_source("http://127.0.0.1:9/a.tar")  # the discard port


@pytest.mark.parametrize("versions", [True, False])
def test_a_file_that_changes_during_the_conversion_is_refused(server, tmp_path, photo_jpegs, versions):
    server.versions = versions
    shards(server.folder, photo_jpegs)
    source, path = open_source(f"{server.url}/s-00.tar"), server.folder / "s-00.tar"
    if versions:
        touch_later(path)
    else:
        path.write_bytes(path.read_bytes() + bytes(512))
    with pytest.raises(UserError, match=r"s-00\.tar: changed after it was indexed"):
        write_beton(tmp_path / "o.beton", source, WriteOptions(workers=0, on_error="skip"))


def test_a_finished_conversion_is_known_by_size_and_version(server, tmp_path, photo_jpegs):
    shards(server.folder, photo_jpegs)
    out, url = tmp_path / "o.beton", f"{server.url}/s-00.tar"
    first = convert_folder(f"{url}?signature=secret1", out, ALONE)
    sent = server.sent
    assert convert_folder(f"{url}?signature=secret2", out, ALONE) == first
    assert "secret" not in manifest_path(out).read_text()
    assert server.sent < 2 * sent  # indexed, but no image read
    touch_later(server.folder / "s-00.tar")
    with pytest.raises(UserError, match="exists already, made from other images"):
        convert_folder(url, out, ALONE)


def test_row_groups_are_read_once(server, tmp_path, photo_jpegs):
    parquet(
        server.folder / "a.parquet", {"all": [data for many in photo_jpegs.values() for data in many] * 5}, group=120
    )
    source = open_source(f"{server.url}/a.parquet")
    server.sent = 0
    write_beton(tmp_path / "o.beton", source, WriteOptions(workers=2))
    size = (server.folder / "a.parquet").stat().st_size
    assert size * 0.8 < server.sent < size * 1.5


def test_large_members_are_not_downloaded_for_the_index(server):
    tar = tar_of({"a.cls": b"0", "a.jpg": b"x" * (6 * BLOCK), "b.jpg": b"y", "b.cls": b"0"})
    (server.folder / "s.tar").write_bytes(tar)
    assert len(open_source(f"{server.url}/s.tar").names) == 2
    assert server.sent < 5 * BLOCK  # the file is opened twice, and has a first and a last block


def test_credentials_are_kept_and_not_shown():
    path = RemotePath("https://user:pw@host:80/a/b/train-0.tar?sig=1")
    assert str(path) == "https://host:80/a/b/train-0.tar"
    assert (path.parent / "x").url == "https://user:pw@host:80/a/b/x"
    with pytest.raises(UserError, match="not a valid URL"):
        source_path("https://[host/a.tar")


def test_braces():
    found = expand_pattern(RemotePath("https://host/{train,val}-{08..10}.tar?x=1"))
    assert [path.name for path in found] == [f"{s}-{n}.tar" for s in ("train", "val") for n in ("08", "09", "10")]
    with pytest.raises(UserError, match="Close every brace"):
        expand_pattern(RemotePath("https://host/train-{0..1.tar"))


@pytest.mark.parametrize("package", ["fsspec", "aiohttp", "braceexpand"])
def test_a_missing_package_is_one_line(monkeypatch, package):
    remote.file_system.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with refuses(rf"need the package {package}. Run: pip install .*'fsspec>="):
        open_source("https://host/{a,b}.tar")
    remote.file_system.cache_clear()


def test_a_web_server_has_no_folders(server, tmp_path):
    with pytest.raises(UserError, match="For web servers use `fastft convert folder`"):
        convert_imagenet(RemotePath(server.url), tmp_path)


# other services: a stand-in for their file systems --------------------------------------------------------------------


class Bucket(MemoryFileSystem):
    """The parts of gcsfs and HfFileSystem that are used."""

    cachable, error = False, None

    def info(self, path: str, **_: bool) -> dict[str, Any]:
        return {**super().info(path), "etag": str(self.modified(path))}

    def cat_file(self, path: str, start: int, end: int, cache_type: str = "") -> bytes:
        if self.error is not None:
            self.requests += 1
            raise self.error
        return super().cat_file(path, start, end)


@pytest.fixture(params=["gs", "hf"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> RemotePath:
    fs = Bucket()
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.0001)
    monkeypatch.setattr(remote, "file_system", lambda protocol: fs)
    path = RemotePath(f"{request.param}://bucket/a.tar")
    fs.pipe(path.url, DATA)
    return path


def test_a_range_of_a_bucket_is_that_of_the_file_that_was_indexed(path):
    stamp = stamp_of_url(path)
    assert read_range(path, stamp, 300, 5000) == DATA[300:5000]
    remote.file_system(path.protocol).pipe(path.url, DATA[::-1])
    with refuses("a.tar: changed after it was indexed"):
        read_range(path, stamp, 300, 5000)


@pytest.mark.parametrize(
    ("error", "times", "reason"),
    [
        (PermissionError("no"), 1, r"access denied \(no\). Run `"),
        (OSError("Forbidden: of Google"), 1, r"access denied \(Forbidden: of Google\)"),
        (ValueError("text\nmore"), 1, r"text\)$"),
        (ConnectionResetError("https://u:pw@h/?token=secret"), 8, r"ConnectionResetError: https://h/, 8 attempts"),
    ],
)
def test_errors_that_cannot_pass_are_not_tried_again(path, error, times, reason):
    stamp, fs = stamp_of_url(path), remote.file_system(path.protocol)
    fs.error, fs.requests = error, 0
    with refuses(rf"^{path.protocol}://bucket/a\.tar: cannot be read \({reason}"):
        read_range(path, stamp, 300, 5000)
    assert fs.requests == times
