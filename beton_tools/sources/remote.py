"""Files at URLs (s3://, hf://, https://) by fsspec: paths, listings, versions, and ranges of bytes."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from beton_tools.base.errors import UserError
from beton_tools.sources.servers import IDENTITY, NO_RANGES, PROTOCOLS, WEB, RemoteError, file_system, module, retrying

# of a local file: bytes and modification time in ns; of a remote one: bytes and version hash
Stamp = tuple[int, int]

MAX_RANGE = 2 << 30  # bytes of one answer; a row group of a parquet file is read at once
_GOOGLE = ("gs://", "gcs://")
_FRESH: dict[str, dict[str, Any]] = {"s3": {"refresh": True}, "hf": {"refresh": True, "expand_info": True}}
_NO_SIZE = "the server does not state the file's size; download it, and give the local file"
# keys of fsspec's `info` that change with the content: S3 and http, Hugging Face; then times of modification
_VERSION_KEYS = ("ETag", "etag", "xet_hash", "blob_id", "Content-MD5", "Digest")
_TIME_KEYS = ("LastModified", "Last-Modified", "mtime")


@dataclass(frozen=True, order=True, slots=True)
class RemotePath:
    """A URL with the methods of `Path` that sources use. As text it lacks the query, which may hold a signature."""

    url: str

    def __str__(self) -> str:
        parts = urlsplit(self.url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))

    @property
    def protocol(self) -> str:
        return urlsplit(self.url).scheme

    @property
    def name(self) -> str:
        return self._pure.name

    @property
    def stem(self) -> str:
        return self._pure.stem

    @property
    def suffix(self) -> str:
        return self._pure.suffix

    @property
    def parent(self) -> RemotePath:
        return self._with_path(str(self._pure.parent))

    @property
    def parents(self) -> list[RemotePath]:
        return [self._with_path(str(path)) for path in self._pure.parents]

    def __truediv__(self, name: str) -> RemotePath:
        return self._with_path(str(self._pure / name))

    @property
    def _pure(self) -> PurePosixPath:
        return PurePosixPath(urlsplit(self.url).path)

    def _with_path(self, path: str) -> RemotePath:
        parts = urlsplit(self.url)
        return RemotePath(urlunsplit((parts.scheme, parts.netloc, "" if path == "." else path, "", "")))

    def open_file_system(self) -> tuple[Any, str]:
        """(fsspec's file system, the path in it); a UserError if a package is missing."""
        fs = file_system(self.protocol)
        return fs, fs._strip_protocol(self.url)

    def exists(self) -> bool:
        return info_of(self) is not None

    def is_file(self) -> bool:
        info = info_of(self)
        return info is not None and info["type"] == "file"

    def is_dir(self) -> bool:
        """Return True if there are objects with this prefix. Always False for web servers, which have no folders."""
        info = None if self.protocol in WEB else info_of(self)
        return info is not None and info["type"] == "directory"


SourcePath = Path | RemotePath
AnyPath = str | os.PathLike[str] | RemotePath


def source_path(value: AnyPath) -> SourcePath:
    """A URL of a protocol that is supported, or a local path. Raises UserError: not a valid URL."""
    if isinstance(value, RemotePath):
        return value
    text = os.fspath(value)
    if text.startswith(_GOOGLE):
        raise UserError(
            f"{text}: read Google's buckets as https://storage.googleapis.com/BUCKET/..., or with an HMAC key as s3:// and "
            "AWS_ENDPOINT_URL=https://storage.googleapis.com"
        )
    if "://" not in text or text.partition("://")[0] not in PROTOCOLS:
        return Path(text)
    try:
        urlsplit(text)
    except ValueError as error:
        raise UserError(f"{text}: not a valid URL ({error}); correct it") from error
    return RemotePath(text)


def has_pattern(path: RemotePath) -> bool:
    """Return True if the URL's path contains a pattern: `*`, `[...]` or `{000..146}`."""
    return any(sign in urlsplit(path.url).path for sign in "*[{")


def expand_pattern(pattern: RemotePath) -> list[RemotePath]:
    """The files that a URL with `*`, `[...]` or `{000..146}` stands for, sorted unless it has braces only.

    Raises UserError: the server cannot be reached or refuses access, is a web server, which has no lists of files for `*`, a
    package is missing, or a brace is not closed.
    """
    found: list[RemotePath] = []
    for path in _expand_braces(pattern):
        if has_pattern(path) and path.protocol in WEB:
            raise UserError(f"{path}: web servers do not list files; use braces, as in train-{{000..146}}.tar")
        if has_pattern(path):
            fs, inside = path.open_file_system()
            try:
                names = retrying(path, path.protocol, lambda fs=fs, inside=inside: fs.glob(inside))  # type: ignore[misc]
            except RemoteError as error:
                raise error.as_user_error() from error
            found += [RemotePath(fs.unstrip_protocol(name)) for name in sorted(names)]
        else:
            found.append(path)
    return found


def _expand_braces(path: RemotePath) -> list[RemotePath]:
    if "{" not in path.url:
        return [path]
    braces: Any = module("braceexpand", path.protocol)
    try:
        return [RemotePath(url) for url in braces.braceexpand(path.url)]
    except ValueError as error:
        raise UserError(f"{path}: {error}; close every brace, as in train-{{000..146}}.tar") from error


def info_of(path: RemotePath) -> dict[str, Any] | None:
    """fsspec's description of a file or prefix: "size", "type" and more; None if there is none. Of a web server as fsspec's.

    Raises UserError: the server cannot be reached, refuses access, or a package is missing.
    """
    try:
        return _find_info(path)
    except RemoteError as error:
        raise error.as_user_error() from error


def _find_info(path: RemotePath) -> dict[str, Any] | None:
    """The answer of `info_of`; raises RemoteError in the place of its UserError."""
    fs, inside = path.open_file_system()
    try:
        if path.protocol in WEB:
            return {"type": "file", "stamp": _Request(path, 0, 1).run()[1]}
        return retrying(path, path.protocol, lambda: fs.info(inside, **_FRESH.get(path.protocol, {})))
    except RemoteError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


def stamp_of_url(path: RemotePath) -> Stamp:
    """Size and a hash of the version of a file as it is now; the hash is 0 where the server states no version.

    Raises:
        RemoteError: there is no such file, the server cannot be reached, refuses access, or does not state the size.
        UserError: a package is missing.
    """
    info = _find_info(path)
    if info is None:
        raise RemoteError(path, "no such file")
    if info["type"] != "file":
        raise RemoteError(path, "a folder, not a file")
    stamp = info.get("stamp") or (info.get("size"), _version_hash(info))
    if not isinstance(stamp[0], int):
        raise RemoteError(path, _NO_SIZE)
    return stamp[0], stamp[1]


def _version_hash(info: Mapping[str, Any]) -> int:
    """info: of fsspec, or the headers of an answer."""
    version = next((str(info[key]) for key in (*_VERSION_KEYS, *_TIME_KEYS) if info.get(key)), "")
    digest = hashlib.blake2b(version.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True) if version else 0


# ranges ---------------------------------------------------------------------------------------------------------------


def read_range(path: RemotePath, stamp: Stamp, start: int, end: int) -> bytes:
    """The bytes [start, end) of a file that has the stamp. No more are received, whatever the server sends.

    Raises RemoteError: they cannot be read, other bytes arrive, or the file has changed.
    """
    if not 0 <= end - start <= MAX_RANGE:
        raise RemoteError(path, f"{end - start:,} bytes would be read at once, the limit is {MAX_RANGE:,}")
    if start == end:
        return b""
    data, (size, version) = _Request(path, start, end).run()
    if path.protocol == "hf":  # its answers state no version that `info` has too
        size, version = stamp_of_url(path)
    if size != stamp[0] or (version != stamp[1] and 0 not in (version, stamp[1])):
        raise RemoteError(path, "changed after it was indexed; run the same command again")
    return data


class _Request:
    """A request for the bytes [start, end) of a file.

    No more is read than was asked for, and the Content-Range of the answer is compared.
    """

    def __init__(self, path: RemotePath, start: int, end: int) -> None:
        self.path, self.start, self.end = path, start, end
        self.fs, self.inside = path.open_file_system()
        self.headers = {**IDENTITY, "Range": f"bytes={start}-{end - 1}"}

    def run(self) -> tuple[bytes, Stamp]:
        """(the bytes, stamp of the file); fewer bytes if it is shorter. The version is 0 if the answer has none to compare.

        Raises RemoteError: as `retrying`; the server sends other bytes, or does not say which.
        """
        protocol = self.path.protocol
        if protocol == "hf":
            return retrying(self.path, protocol, self._from_hub)
        asyn: Any = module("fsspec.asyn", protocol)
        read = self._from_s3 if protocol == "s3" else self._from_web
        return retrying(self.path, protocol, lambda: asyn.sync(self.fs.loop, read))

    def _expected(self, stated: str | None) -> tuple[int, int]:
        """(number of bytes that follow, size of the file) by a Content-Range."""
        numbers = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", stated or "")
        if numbers is None:
            raise ValueError(_NO_SIZE)
        first, last, size = map(int, numbers.groups())
        if (first, last) != (self.start, min(self.end, size) - 1):
            asked = f"{self.start}-{self.end - 1}"
            raise RemoteError(self.path, f"bytes {first}-{last} arrived in the place of {asked}")
        return last + 1 - first, size

    def _complete(self, data: bytes | bytearray, count: int) -> bytes:
        if len(data) != count:
            raise RemoteError(self.path, f"{len(data):,} of {count:,} bytes arrived")
        return bytes(data)

    async def _from_web(self) -> tuple[bytes, Stamp]:
        session = await self.fs.set_session()
        async with session.get(self.fs.encode_url(self.path.url), headers=self.headers) as answer:
            version = _version_hash(answer.headers)
            if answer.status == 416 and answer.headers.get("Content-Range", "").endswith("*/0"):
                return b"", (0, version)
            if answer.status in (404, 410):
                raise FileNotFoundError("no such file")
            answer.raise_for_status()
            if answer.status != 206 or answer.headers.get("Content-Encoding", "identity") != "identity":
                raise ValueError(NO_RANGES)
            count, size = self._expected(answer.headers.get("Content-Range"))
            return await answer.content.readexactly(count), (size, version)

    async def _from_s3(self) -> tuple[bytes, Stamp]:
        bucket, key, _ = self.fs.split_path(self.inside)
        answer = await self.fs._call_s3("get_object", Bucket=bucket, Key=key, Range=self.headers["Range"])
        data, body = bytearray(), answer["Body"]
        try:
            count, size = self._expected(answer.get("ContentRange"))
            while len(data) < count and (part := await body.read(count - len(data))):
                data += part
        finally:
            body.close()
        return self._complete(data, count), (size, _version_hash(answer))

    def _from_hub(self) -> tuple[bytes, Stamp]:
        hub: Any = module("huggingface_hub.utils", self.path.protocol)
        headers = hub.build_hf_headers(token=self.fs.token) | self.headers
        with hub.get_session().stream("GET", self.fs.url(self.inside), headers=headers) as answer:
            hub.hf_raise_for_status(answer)
            count, size = self._expected(answer.headers.get("Content-Range"))
            data = bytearray()
            for part in answer.iter_raw():
                data += part[: count - len(data)]
                if len(data) == count:
                    break
        return self._complete(data, count), (size, 0)
