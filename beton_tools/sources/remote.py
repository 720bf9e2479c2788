"""Files at URLs (s3://, gs://, hf://, https://) by fsspec: paths, listings, versions, and ranges of bytes."""

from __future__ import annotations

import hashlib
import importlib
import os
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from beton_tools.base.console import hide_secrets
from beton_tools.base.errors import UserError

# of a local file: bytes and modification time in ns; of a remote one: bytes and version hash
Stamp = tuple[int, int]

ATTEMPTS = 5  # of one request, beside those of the file system's own library
FIRST_WAIT = 0.5  # seconds before the second attempt; it doubles
_NO_ANSWER = 60  # seconds without data after which a connection counts as broken
MAX_RANGE = 2 << 30  # bytes of one answer; a row group of a parquet file is read at once
MAX_PAGE = 64 << 20  # bytes of a web server's list of files
_EXTRA = "pip install 'fastft[cloud]'"
# protocol -> options of its file system. Listings are not cached: a file that changes must be noticed.
_WEB = ("http", "https")
_UNVERSIONED = (
    "gs",
    "gcs",
    "hf",
)  # answers have no version that `info` has too; that is asked for after each
_HTTP: dict[str, Any] = {
    "headers": {"Accept-Encoding": "identity"}
}  # ranges count the bytes of the file itself
_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {"use_listings_cache": False},
    "gs": {"use_listings_cache": False},
    "gcs": {"use_listings_cache": False},
    "hf": {},
    "http": _HTTP,
    "https": _HTTP,
}
_FRESH: dict[str, dict[str, Any]] = {"s3": {"refresh": True}, "hf": {"refresh": True, "expand_info": True}}
# keys of fsspec's `info` that change with the content: S3 and http, Google, Hugging Face; then times of modification
_VERSION_KEYS = ("ETag", "etag", "md5Hash", "xet_hash", "blob_id", "Content-MD5", "Digest")
_TIME_KEYS = ("LastModified", "Last-Modified", "updated", "mtime")

T = TypeVar("T")


class RemoteError(OSError):
    """A remote file cannot be read. `filename` is its URL, `strerror` the reason."""

    def __init__(self, path: RemotePath, reason: str) -> None:
        super().__init__(0, reason, str(path))

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteError, (RemotePath(self.filename), self.strerror)


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

    def exists(self) -> bool:
        return info_of(self) is not None

    def is_file(self) -> bool:
        info = info_of(self)
        return info is not None and info["type"] == "file"

    def is_dir(self) -> bool:
        """Return True if there are objects with this prefix. Always False for web servers, which have no folders."""
        info = None if self.protocol in _WEB else info_of(self)
        return info is not None and info["type"] == "directory"


SourcePath = Path | RemotePath
AnyPath = str | os.PathLike[str] | RemotePath


def source_path(value: AnyPath) -> SourcePath:
    """A URL of a protocol that is supported, or a local path.

    Raises:
        UserError: not a valid URL.
    """
    if isinstance(value, RemotePath):
        return value
    text = os.fspath(value)
    if "://" not in text or text.partition("://")[0] not in _OPTIONS:
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

    Raises:
        UserError: the server cannot be reached or refuses access, a package is missing, or a brace is not closed.
    """
    found: list[RemotePath] = []
    for path in _expand_braces(pattern):
        if has_pattern(path):
            fs, inside = file_system(path)
            try:
                names = retrying(path, lambda fs=fs, inside=inside: fs.glob(inside))  # type: ignore[misc]
            except RemoteError as error:
                raise UserError(f"{path}: cannot be read ({error.strerror})") from error
            found += [RemotePath(fs.unstrip_protocol(name)) for name in sorted(names)]
        else:
            found.append(path)
    return found


def _expand_braces(path: RemotePath) -> list[RemotePath]:
    if "{" not in path.url:
        return [path]
    braces: Any = _module("braceexpand", path)
    try:
        return [RemotePath(url) for url in braces.braceexpand(path.url)]
    except ValueError as error:
        raise UserError(f"{path}: {error}; close every brace, as in train-{{000..146}}.tar") from error


def info_of(path: RemotePath) -> dict[str, Any] | None:
    """fsspec's description of a file or prefix: "size", "type" and more; None if there is none. Of a web server as fsspec's.

    Raises:
        UserError: the server cannot be reached, refuses access, or a package is missing.
    """
    fs, inside = file_system(path)
    try:
        if path.protocol in _WEB:
            return {"type": "file", "stamp": _request(path, 0, 1)[1]}
        return retrying(path, lambda: fs.info(inside, **_FRESH.get(path.protocol, {})))
    except RemoteError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def stamp_of_url(path: RemotePath) -> Stamp:
    """Size and a hash of the version of a file as it is now; the hash is 0 where the server states no version.

    Raises:
        RemoteError: there is no such file, or the server does not state the size.
        UserError: as `info_of`.
    """
    info = info_of(path)
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

    Raises:
        RemoteError: they cannot be read, other bytes arrive, or the file has changed.
    """
    if not 0 <= end - start <= MAX_RANGE:
        raise RemoteError(path, f"{end - start:,} bytes would be read at once, the limit is {MAX_RANGE:,}")
    if start == end:
        return b""
    data, (size, version) = _request(path, start, end)
    if path.protocol in _UNVERSIONED:
        size, version = stamp_of_url(path)
    if size != stamp[0] or (version != stamp[1] and 0 not in (version, stamp[1])):
        raise changed(path)
    return data


def changed(path: RemotePath) -> RemoteError:
    return RemoteError(path, "changed after it was indexed; run the same command again")


def _request(path: RemotePath, start: int, end: int) -> tuple[bytes, Stamp]:
    """(bytes [start, end), stamp) of a file; fewer bytes if it is shorter. The version is 0 if the answer has none to compare.

    No more is read than was asked for, and the Content-Range of the answer is compared; of Google's in `_LimitedResponse`.

    Raises:
        RemoteError: as `retrying`; the server sends other bytes, or does not say which.
    """
    fs, inside = file_system(path)
    headers = {**_HTTP["headers"], "Range": f"bytes={start}-{end - 1}"}

    def expected(stated: str | None) -> tuple[int, int]:
        """(number of bytes that follow, size of the file) by a Content-Range."""
        numbers = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", stated or "")
        if numbers is None:
            raise ValueError(_NO_SIZE)
        first, last, size = map(int, numbers.groups())
        if (first, last) != (start, min(end, size) - 1):
            raise RemoteError(path, f"bytes {first}-{last} arrived in the place of {start}-{end - 1}")
        return last + 1 - first, size

    async def from_web() -> tuple[bytes, Stamp]:
        session = await fs.set_session()
        async with session.get(fs.encode_url(path.url), headers=headers) as answer:
            version = _version_hash(answer.headers)
            if answer.status == 416 and answer.headers.get("Content-Range", "").endswith("*/0"):
                return b"", (0, version)
            if answer.status in (404, 410):
                raise FileNotFoundError("no such file")
            answer.raise_for_status()
            if answer.status != 206 or answer.headers.get("Content-Encoding", "identity") != "identity":
                raise ValueError(_NO_RANGES)
            count, size = expected(answer.headers.get("Content-Range"))
            return await answer.content.readexactly(count), (size, version)

    async def from_s3() -> tuple[bytes, Stamp]:
        bucket, key, _ = fs.split_path(inside)
        answer = await fs._call_s3("get_object", Bucket=bucket, Key=key, Range=headers["Range"])
        data, body = bytearray(), answer["Body"]
        try:
            count, size = expected(answer.get("ContentRange"))
            while len(data) < count and (part := await body.read(count - len(data))):
                data += part
        finally:
            body.close()
        return _complete(path, data, count), (size, _version_hash(answer))

    def from_hub() -> tuple[bytes, Stamp]:
        hub: Any = _module("huggingface_hub.utils", path)
        login = hub.build_hf_headers(token=fs.token)
        with hub.get_session().stream("GET", fs.url(inside), headers=login | headers) as answer:
            hub.hf_raise_for_status(answer)
            count, size = expected(answer.headers.get("Content-Range"))
            data = bytearray()
            for part in answer.iter_raw():
                data += part[: count - len(data)]
                if len(data) == count:
                    break
        return _complete(path, data, count), (size, 0)

    def from_google() -> tuple[bytes, Stamp]:
        return _complete(path, fs.cat_file(inside, start=start, end=end), end - start), (0, 0)

    if path.protocol in _WEB or path.protocol == "s3":
        asyn: Any = _module("fsspec.asyn", path)
        return retrying(path, lambda: asyn.sync(fs.loop, from_s3 if path.protocol == "s3" else from_web))
    return retrying(path, from_hub if path.protocol == "hf" else from_google)


def _complete(path: RemotePath, data: bytes | bytearray, count: int) -> bytes:
    if len(data) != count:
        raise RemoteError(path, f"{len(data):,} of {count:,} bytes arrived")
    return bytes(data)


# fsspec ---------------------------------------------------------------------------------------------------------------


def file_system(path: RemotePath) -> tuple[Any, str]:
    """(fsspec's file system, the path in it) of a URL.

    Raises:
        UserError: a package is missing.
    """
    fs = _file_system(path.protocol)
    return fs, fs._strip_protocol(path.url)


@lru_cache
def _file_system(protocol: str) -> Any:
    example = RemotePath(f"{protocol}://")
    fsspec: Any = _module("fsspec", example)
    options = dict(_OPTIONS[protocol])
    if protocol not in ("s3", "hf"):
        client = _client(_module("aiohttp", example))
        options["client_kwargs" if protocol in _WEB else "session_kwargs"] = client
    if protocol in _WEB:
        client["auto_decompress"] = False
    try:
        return fsspec.filesystem(protocol, **options)
    except ImportError as error:  # "Install s3fs to access S3"
        raise UserError(f"{protocol}:// files cannot be read ({_first_line(error)}); {_EXTRA}") from error


def _client(aiohttp: Any) -> dict[str, Any]:
    """Options of a client; of an answer that is read as a whole it takes the range that was asked for, or MAX_PAGE bytes."""

    class LimitedResponse(aiohttp.ClientResponse):
        async def read(self) -> bytes:
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.request_info.headers.get("Range", ""))
            if asked and self.status < 300 and not self._is_range(*asked.groups()):
                raise ValueError(_NO_RANGES)
            limit = int(asked[2]) + 1 - int(asked[1]) if asked else MAX_PAGE
            body = bytearray()
            while chunk := await self.content.readany():
                body += chunk
                if len(body) > limit:
                    what = (
                        "more than {:,} bytes arrived"
                        if asked
                        else "the list of files is larger than {:,} bytes"
                    )
                    raise ValueError(what.format(limit))
            self._body: bytes | None = bytes(body)
            return self._body

        def _is_range(self, first: str, last: str) -> bool:
            return self.headers.get("Content-Range", "").startswith(f"bytes {first}-{last}/")

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_NO_ANSWER, sock_read=_NO_ANSWER)
    return {"timeout": timeout, "response_class": LimitedResponse}


def _module(name: str, path: RemotePath) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{path.protocol}:// files need the package {name}; {_EXTRA}") from error


def retrying(path: RemotePath, request: Callable[[], T]) -> T:
    """The value of `request()`, tried again after errors that may pass, such as a connection that broke.

    Raises:
        RemoteError: the last error, on one line; its cause is the error that the library raised.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return request()
        except Exception as error:  # each file system has exceptions of its own
            reason, passing = _explain(error, path.protocol)
            if attempt == ATTEMPTS or not passing:
                tried = f", {attempt} attempts" if attempt > 1 else ""
                raise RemoteError(path, f"{reason}{tried}") from error
        time.sleep(FIRST_WAIT * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
    raise AssertionError("unreachable")


_NO_SIZE = "the server does not state the file's size; download it, and give the local file"
_NO_RANGES = "the server cannot send parts of a file (range requests); download it, and give the local file"
_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a profile; FSSPEC_S3_ANON=true for a public bucket",
    "gs": "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS",
    "hf": "run `hf auth login`, and accept the data set's terms on its page",
}


def _explain(error: Exception, protocol: str) -> tuple[str, bool]:
    """(the reason on one line, whether the same request may succeed later)."""
    hint = _CREDENTIALS.get("gs" if protocol == "gcs" else protocol, "use a URL that needs no login")
    of_aiohttp = type(error).__module__.startswith("aiohttp")
    status = getattr(error if of_aiohttp else getattr(error, "response", None), "status", 0)
    status = status or getattr(getattr(error, "response", None), "status_code", 0)
    if isinstance(error, RemoteError):
        return str(error.strerror), True
    if isinstance(error, FileNotFoundError):
        text = _first_line(error)
        return (text if "bucket" in text else "no such file"), False
    if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"):
        return f"no credentials: {hint}", False
    if isinstance(error, PermissionError) or status in (401, 403):
        what = f"HTTP status {status}" if status else _first_line(error)
        return f"access denied ({what}); {hint}", False
    if status:  # the library's text repeats the URL
        return f"HTTP status {status}", status >= 500 or status in (408, 429)
    if isinstance(error, ValueError) and not of_aiohttp:
        return _first_line(error), False
    passing = not isinstance(error, (ImportError, TypeError, ValueError))
    return f"{type(error).__name__}: {_first_line(error)}", passing


def _first_line(error: BaseException) -> str:
    return hide_secrets((str(error) or type(error).__name__).partition("\n")[0])[:200]
