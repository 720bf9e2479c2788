"""Files at URLs (https://, s3://, gs://, hf://) with fsspec: paths, patterns, versions, byte ranges, open files."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit, urlunsplit

from beton_tools.base.console import format_bytes
from beton_tools.base.errors import UserError
from beton_tools.base.extras import install_extra
from beton_tools.base.user_files import open_user_file
from beton_tools.sources.remote_errors import ERROR_BYTES, Refused, RemoteError, answer_of, explain

# a local file's size in bytes and modification time in ns, or a remote file's size in bytes and version hash
Stamp = tuple[int, int]

BLOCK = 4 << 20  # bytes per request while an archive is indexed. They take longer than a round trip
MAX_RANGE = 2 << 30  # bytes per answer. A row group in a parquet file is read at once
ATTEMPTS = 8  # per request
FIRST_WAIT = 0.5  # seconds before the second attempt. The wait doubles, so a server may be away for a minute
_BLOCKS = 3  # blocks that an open file keeps: labels of WebDataset samples may lie before the image
_CONNECTIONS = 8
_NO_RANGES = "the server cannot send a file in parts (range requests). Download it, and give the local file"
NO_ANSWER = 30  # seconds without data, or with less than LEAST_RATE, after which a connection counts as broken
LEAST_RATE = 16 << 10  # bytes per second. Eight connections at this rate fill 1 Mbit/s
TOLD_EVERY = 10.0  # seconds between lines about files that are read
_WEB = ("http", "https")
# protocol -> its file system's package, and what to do if access is denied
_PROTOCOLS = {
    **dict.fromkeys(_WEB, ("aiohttp", "Use a URL that needs no login")),
    "s3": (
        "s3fs",
        "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a profile, or for a public bucket FSSPEC_S3_ANON=true",
    ),
    "gs": ("gcsfs", "Run `gcloud auth application-default login`, or for a public bucket set FSSPEC_GS_TOKEN=anon"),
    "hf": ("huggingface_hub", "Run `hf auth login`, and accept the dataset's terms on its page"),
}
# arguments that make fsspec's `info` ask the server
_FRESH = {"s3": {"refresh": True}, "hf": {"refresh": True, "expand_info": True}}
# keys in `info` that change with the content: first S3, Google and http, then Hugging Face, then modification times
_VERSION_KEYS = ("ETag", "etag", "xet_hash", "blob_id", "LastModified", "Last-Modified", "mtime")

P = TypeVar("P")
T = TypeVar("T")


@dataclass(frozen=True, order=True, slots=True)
class RemotePath:
    """A URL with the methods of `Path` that sources use. Its text lacks the query, which may hold a signature."""

    url: str

    def __str__(self) -> str:
        parts = urlsplit(self.url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))

    protocol = property(lambda self: urlsplit(self.url).scheme)
    name = property(lambda self: self._pure.name)
    stem = property(lambda self: self._pure.stem)
    suffix = property(lambda self: self._pure.suffix)
    parent = property(lambda self: self._with_path(self._pure.parent))
    _pure = property(lambda self: PurePosixPath(urlsplit(self.url).path))

    @property
    def parents(self) -> list[RemotePath]:
        return [self._with_path(path) for path in self._pure.parents]

    def __truediv__(self, name: str) -> RemotePath:
        return self._with_path(self._pure / name)

    def _with_path(self, path: PurePosixPath) -> RemotePath:
        parts = urlsplit(self.url)
        return RemotePath(urlunsplit((parts.scheme, parts.netloc, "" if str(path) == "." else str(path), "", "")))

    def exists(self) -> bool:
        return _info(self) is not None

    def is_file(self) -> bool:
        return (_info(self) or {}).get("type") == "file"

    def is_dir(self) -> bool:
        """Return True if there are objects with this prefix. Always False for web servers, which have no folders."""
        return self.protocol not in _WEB and (_info(self) or {}).get("type") == "directory"


SourcePath = Path | RemotePath
AnyPath = str | os.PathLike[str] | RemotePath


def source_path(value: AnyPath) -> SourcePath:
    """Return a URL with a supported protocol, or a local path. Raises UserError if a URL is not valid."""
    if isinstance(value, RemotePath):
        return value
    text = os.fspath(value)
    if "://" not in text or text.partition("://")[0] not in _PROTOCOLS:
        return Path(text)
    try:
        urlsplit(text)
    except ValueError as error:
        raise UserError(f"{text}: not a valid URL ({error}). Correct it") from error
    return RemotePath(text)


def has_pattern(path: RemotePath) -> bool:
    return any(sign in urlsplit(path.url).path for sign in "*[{")


def expand_pattern(pattern: RemotePath) -> list[RemotePath]:
    """Return the files that a URL with `*`, `[...]` or `{000..146}` stands for, in order.

    Raises:
        UserError: The files cannot be listed.
    """
    paths: list[RemotePath] = []
    url, protocol = pattern.url, pattern.protocol
    try:
        for path in map(RemotePath, _package("braceexpand", protocol).braceexpand(url) if "{" in url else [url]):
            if not has_pattern(path):
                paths.append(path)
            elif path.protocol in _WEB:
                raise UserError(f"{path}: web servers do not list files. Use braces, as in train-{{000..146}}.tar")
            else:
                paths += map(RemotePath, sorted(_retrying(path, _glob)))
    except ValueError as error:
        raise UserError(f"{pattern}: {error}. Close every brace, as in train-{{000..146}}.tar") from error
    return paths


def _glob(fs: Any, pattern: str) -> list[str]:
    """Return the URLs that match. fsspec's `glob` silently leaves out folders that could not be listed. Here that is an
    error, because the images in them would be missing.
    """
    failed: list[Exception] = []
    truly_list = getattr(fs, "_ls", None)

    async def list_folder(*args: Any, **kwargs: Any) -> Any:
        try:
            return await truly_list(*args, **kwargs)  # type: ignore[misc]
        except FileNotFoundError:
            raise
        except Exception as error:
            failed.append(error)
            raise

    if truly_list is None:  # Hugging Face's file system is not asynchronous
        return list(map(fs.unstrip_protocol, fs.glob(pattern)))
    fs._ls = list_folder
    try:
        found = fs.glob(pattern)
    finally:
        fs._ls = truly_list
    if failed:
        raise failed[0]
    return list(map(fs.unstrip_protocol, found))


# requests -------------------------------------------------------------------------------------------------------------


def _package(name: str, protocol: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(f"{protocol}:// files need the package {name}. Run: {install_extra('cloud')}") from error


@lru_cache
def file_system(protocol: str) -> Any:
    """Return fsspec's file system for a protocol. Listings are not cached, because files may change.

    Raises:
        UserError: A package is missing.
    """
    library, fsspec = _package(_PROTOCOLS[protocol][0], protocol), _package("fsspec", protocol)
    if protocol in _WEB:
        timeout = library.ClientTimeout(total=None, sock_connect=NO_ANSWER, sock_read=NO_ANSWER)
        return fsspec.filesystem(protocol, client_kwargs={"timeout": timeout, "auto_decompress": False})
    if protocol == "s3":  # 25 attempts by s3fs and botocore for each of ours would wait for half an hour
        config = {"retries": {"total_max_attempts": 1}, "connect_timeout": NO_ANSWER, "read_timeout": NO_ANSWER}
        fs = fsspec.filesystem(protocol, use_listings_cache=False, config_kwargs=config)
        fs.retries = 1
        return fs
    return fsspec.filesystem(protocol, **({} if protocol == "hf" else {"use_listings_cache": False}))


def _retrying(path: RemotePath, request: Callable[[Any, str], T]) -> T:
    """Call `request(file system, path in it)`, and try again after errors that may be temporary.

    Raises:
        RemoteError: The request failed. The message gives the last error's reason.
    """
    fs, attempt, _traffic.path = file_system(path.protocol), 0, path
    while True:
        attempt += 1
        try:
            answer = request(fs, fs._strip_protocol(path.url))
            _traffic.path, _traffic.trouble = path, ""
            return answer
        except Exception as error:  # each file system has its own exceptions
            reason, may_pass, kind = explain(error, _PROTOCOLS[path.protocol][1])
            _traffic.trouble = f", attempt {attempt} of {ATTEMPTS} failed: {reason}"
            if attempt == ATTEMPTS or not may_pass:
                tried = f", {attempt} attempts" if attempt > 1 else ""
                raise kind(f"{path}: cannot be read ({reason}{tried})") from error
        time.sleep(FIRST_WAIT * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))


def _info(path: RemotePath) -> dict[str, Any] | None:
    """Return fsspec's description of a file or prefix, or None if there is none.

    For a web server: "type" and "stamp".
    """
    try:
        if path.protocol in _WEB:
            return {"type": "file", "stamp": _request(path, 0, 1)[1]}
        info = lambda fs, inside: fs.info(inside, **_FRESH.get(path.protocol, {}))  # noqa: E731
        return _retrying(path, lambda fs, inside: _within(2 * NO_ANSWER, lambda: info(fs, inside)))
    except RemoteError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        if path.protocol == "s3" and 300 <= answer_of(error.__cause__)[0] < 500:
            _request(path, 0, 1)  # S3 does not say why it refuses a HEAD request
        raise


def stamp_of_url(path: RemotePath) -> Stamp:
    """Return a file's current size and a hash of its version. The hash is 0 where the server states no version."""
    info = _info(path) or {}
    size, version = info.get("stamp") or (info.get("size"), _version_hash(info))
    if info.get("type") != "file" or not isinstance(size, int):
        raise RemoteError(f"{path}: cannot be read (no such file, or the server does not state its size)")
    return size, version


def _version_hash(info: Mapping[str, Any]) -> int:
    """Hash the version in `info`, which comes from fsspec or from an answer's headers."""
    version = next((str(info[key]) for key in _VERSION_KEYS if info.get(key)), "")
    digest = hashlib.blake2b(version.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True) if version else 0


def read_range(path: RemotePath, stamp: Stamp, start: int, end: int) -> bytes:
    """Read the bytes [start, end) of a file that has the stamp `stamp`.

    Raises:
        RemoteError: The bytes cannot be read, or the file has changed.
    """
    if not 0 <= end - start <= MAX_RANGE:
        raise RemoteError(f"{path}: {end - start:,} bytes would be read at once, but the limit is {MAX_RANGE:,}")
    if start == end:
        return b""
    data, (size, version) = _request(path, start, end)
    if size != stamp[0] or (version != stamp[1] and 0 not in (version, stamp[1])):
        raise RemoteError(f"{path}: changed after it was indexed. Run the same command again")
    if len(data) != end - start:
        raise RemoteError(f"{path}: {len(data):,} bytes arrived instead of {end - start:,}")
    return data


def _request(path: RemotePath, start: int, end: int) -> tuple[bytes, Stamp]:
    """Return a file's bytes [start, end), or fewer if it is shorter, and its stamp.

    Web servers and S3 may send more than was requested. The rest is not read.
    """
    if path.protocol in ("gs", "hf"):
        options = {"cache_type": "none"} if path.protocol == "hf" else {}  # hf's cache would read 5 MiB more
        limit = NO_ANSWER + (end - start) / LEAST_RATE
        get = lambda fs, inside: fs.cat_file(inside, start=start, end=end, **options)  # noqa: E731
        data = _retrying(path, lambda fs, inside: _within(limit, lambda: get(fs, inside)))
        _traffic.received += len(data)
        return data, stamp_of_url(path)

    def count_of(stated: str) -> tuple[int, int]:
        """Parse a Content-Range into (bytes that follow, the file's size)."""
        if not (numbers := re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", stated)):
            raise ValueError(_NO_RANGES)
        first, last, size = map(int, numbers.groups())
        if (first, last) != (start, min(end, size) - 1):
            raise OSError(f"bytes {first}-{last} arrived instead of {start}-{end - 1}")
        return last + 1 - first, size

    async def read(fs: Any, inside: str) -> tuple[bytes, Stamp]:
        headers = {"Accept-Encoding": "identity", "Range": f"bytes={start}-{end - 1}"}  # ask for the file's own bytes
        if path.protocol == "s3":
            bucket, key, _ = fs.split_path(inside)
            reply = await _answered(fs._call_s3("get_object", Bucket=bucket, Key=key, Range=headers["Range"]))
            with closing(reply["Body"]) as body:
                count, size = count_of(reply.get("ContentRange", ""))
                return await _receive(body.read, count), (size, _version_hash(reply))
        session = await fs.set_session()
        async with await _answered(session.get(fs.encode_url(path.url), headers=headers)) as answer:
            version, stated = _version_hash(answer.headers), answer.headers.get("Content-Range", "")
            if answer.status == 416 and stated.endswith("*/0"):
                return b"", (0, version)
            if answer.status in (404, 410):
                raise FileNotFoundError
            if answer.status >= 300:
                raise Refused(answer.status, answer.headers, await _answered(answer.content.read(ERROR_BYTES)))
            if answer.status != 206 or answer.headers.get("Content-Encoding", "identity") != "identity":
                raise ValueError(_NO_RANGES)
            count, size = count_of(stated)
            return await _receive(answer.content.read, count), (size, version)

    return _retrying(path, lambda fs, inside: import_module("fsspec.asyn").sync(fs.loop, read, fs, inside))


async def _answered(waiting: Awaitable[T]) -> T:
    """Wait for a server's answer. Raises OSError after 2 * NO_ANSWER seconds, in which it may send its headers slowly."""
    try:
        return await asyncio.wait_for(waiting, 2 * NO_ANSWER)
    except asyncio.TimeoutError:  # not the built-in one before Python 3.11
        raise OSError(f"no answer in {2 * NO_ANSWER} s") from None


async def _receive(read: Callable[[int], Awaitable[bytes]], count: int) -> bytes:
    """Return `count` bytes.

    Raises:
        OSError: There are fewer, or fewer than LEAST_RATE bytes per second arrived for NO_ANSWER seconds. fsspec would
            take a TimeoutError for its own, which has no text.
    """
    data, began, before = bytearray(), time.monotonic(), 0
    while len(data) < count and (part := await read(count - len(data))):
        data += part
        _traffic.received += len(part)
        if (seconds := time.monotonic() - began) >= NO_ANSWER:
            if len(data) < count and len(data) - before < LEAST_RATE * seconds:
                raise OSError(f"only {format_bytes(len(data) - before)} arrived in {seconds:.0f} s")
            began, before = time.monotonic(), len(data)
    if len(data) < count:
        raise OSError(f"the connection ended after {len(data):,} of {count:,} bytes")
    return bytes(data)


def _within(seconds: float, call: Callable[[], T]) -> T:
    """Return what `call` returns. Raises OSError after so many seconds, for libraries that have no such limit."""
    done: Future[T] = Future()

    def work() -> None:
        try:
            done.set_result(call())
        except Exception as error:
            done.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        return done.result(seconds)
    except FutureTimeout:
        if done.done():  # the call's own error
            raise
        raise OSError(f"no complete answer in {seconds:.0f} s") from None


@dataclass
class _Traffic:
    """Progress of remote reads: all bytes so far, the latest file, and the error of its latest request."""

    received: int = 0
    path: RemotePath | None = None
    trouble: str = ""


_traffic = _Traffic()


@contextmanager
def telling_what_is_read(say: Callable[[str], object] | None) -> Iterator[None]:
    """While remote files are indexed, say every TOLD_EVERY seconds how much has arrived, also while a server is slow."""
    if say is None:
        yield
        return
    ended, before, _traffic.path = threading.Event(), _traffic.received, None

    def tell() -> None:
        while not ended.wait(TOLD_EVERY):
            if _traffic.path is not None:
                received = format_bytes(_traffic.received - before)
                say(f"{_traffic.path}: indexing, {received} received{_traffic.trouble}")

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


# open files -----------------------------------------------------------------------------------------------------------


def open_source_file(path: SourcePath, expected: str, read_ahead: bool = True, stamp: Stamp | None = None) -> BinaryIO:
    """Open a local file with `open_user_file`, or a remote one, whose attribute `stamp` is compared at every read.

    Args:
        read_ahead: Whether to request BLOCK bytes at a time, for a file that is read from start to end.

    Raises:
        UserError: The file does not exist, cannot be opened, or is not a regular file.
    """
    if not isinstance(path, RemotePath):
        return open_user_file(path, expected)
    stamp = stamp or stamp_of_url(path)
    file = _package("fsspec.spec", path.protocol).AbstractBufferedFile(None, str(path), size=stamp[0])
    read: Callable[[int, int], bytes] = lambda start, end: read_range(path, stamp, start, min(end, stamp[0]))  # noqa: E731
    caching = import_module("fsspec.caching")
    file.cache = (
        caching.BlockCache(BLOCK, read, stamp[0], _BLOCKS) if read_ahead else caching.BaseCache(0, read, stamp[0])
    )
    file.stamp = stamp
    return file


def map_files(function: Callable[[P], T], paths: Sequence[P]) -> Iterator[T]:
    """Apply `function` to every path or span, in order. Several remote ones are processed at a time."""
    if len(paths) < 2 or not isinstance(getattr(paths[0], "path", paths[0]), RemotePath):
        yield from map(function, paths)
        return
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        yield from pool.map(function, paths)  # cancels what is left when it is closed
