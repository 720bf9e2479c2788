"""Answers of remote servers: no more is read than was asked for, and bytes of another range are refused."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from beton_tools.sources import remote, servers
from beton_tools.sources.remote import RemotePath, read_range
from beton_tools.sources.servers import RemoteError
from tests.beton_tools.file_server import FileServer, etag_of, serve, touch_later

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")
pytest.importorskip("huggingface_hub", minversion="1.0")


class Body:
    """Like aiobotocore's: `read` returns less than asked for."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    async def read(self, count: int) -> bytes:
        return await self.answer.content.read(min(count, 1000))

    def close(self) -> None:
        self.answer.close()


class FakeFileSystem:
    """The parts of s3fs and HfFileSystem that are used, for the files of a local web server."""

    token = None

    def __init__(self, server: FileServer) -> None:
        self.web = fsspec.filesystem("http", skip_instance_cache=True)
        self.server, self.loop = server, self.web.loop

    def _strip_protocol(self, url: str) -> str:
        return url.partition("://")[2]

    def split_path(self, path: str) -> tuple[str, str, None]:
        return *path.split("/", 1), None

    def url(self, path: str) -> str:
        return f"{self.server.url}/{path.partition('/')[2]}"

    def info(self, path: str, **_: bool) -> dict[str, Any]:
        stat = (self.server.folder / path.partition("/")[2]).stat()
        return {"type": "file", "size": stat.st_size, "ETag": etag_of(stat)}

    async def _call_s3(self, _: str, Bucket: str, Key: str, Range: str) -> dict[str, Any]:
        session = await self.web.set_session()
        answer = await session.get(self.url(f"{Bucket}/{Key}"), headers={"Range": Range})
        answer.raise_for_status()
        headers = answer.headers
        return {"Body": Body(answer), "ContentRange": headers.get("Content-Range"), "ETag": headers["ETag"]}


@pytest.fixture(params=["s3", "hf", "http"])
def path(request: pytest.FixtureRequest, server: FileServer, monkeypatch: pytest.MonkeyPatch) -> RemotePath:
    monkeypatch.setattr(servers, "FIRST_WAIT", 0.001)
    fs = FakeFileSystem(server)
    if request.param != "http":
        monkeypatch.setattr(remote, "file_system", lambda protocol: fs)
    (server.folder / "a.tar").write_bytes(bytes(range(256)) * 100)
    host = server.url.partition("://")[2] if request.param == "http" else "bucket"
    return RemotePath(f"{request.param}://{host}/a.tar")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FileServer]:
    with serve(tmp_path) as running:
        yield running


def test_a_range_is_read_and_an_endless_answer_left(path, server):
    stamp = remote.stamp_of_url(path)
    assert read_range(path, stamp, 300, 5000) == (bytes(range(256)) * 100)[300:5000]
    server.trick = "endless"
    assert read_range(path, stamp, 300, 5000) == (bytes(range(256)) * 100)[300:5000]
    assert server.sent < 64 << 20


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"trick": "other range"}, r"bytes 301-5000 arrived in the place of 300-4999|cannot send parts"),
        ({"ranges": False}, "cannot send parts|does not state the file's size"),
        ({"break_every": 1}, r"5 attempts"),
        ({"status": 403}, r"access denied"),
    ],
)
def test_other_bytes_are_refused(path, server, change, reason):
    stamp = remote.stamp_of_url(path)
    vars(server).update(change)
    with pytest.raises(RemoteError, match=reason) as caught:
        read_range(path, stamp, 300, 5000)
    assert re.match(rf"{path.protocol}://[\w.:]+/a\.tar: .*", str(caught.value)) and "\n" not in str(caught.value)


def test_a_file_that_changed_is_refused(path, server):
    stamp = remote.stamp_of_url(path)
    touch_later(server.folder / "a.tar")
    with pytest.raises(RemoteError, match="changed after it was indexed"):
        read_range(path, stamp, 300, 5000)
