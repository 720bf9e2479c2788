"""Files at URLs (s3://, gs://, hf://, https://) by fsspec: paths, listings, versions and retries."""

from __future__ import annotations

import hashlib
import importlib
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from beton_tools.base.errors import UserError

# of a local file: bytes and modification time in ns; of a remote one: bytes and version hash
Stamp = tuple[int, int]

ATTEMPTS = 5  # of one request, beside those of the file system's own library
FIRST_WAIT = 0.5  # seconds before the second attempt; it doubles
_NO_ANSWER = 60  # seconds without data after which a connection counts as broken
_EXTRA = "pip install 'fastft[cloud]'"
# protocol -> options of its file system. Listings are not cached: a file that changes must be noticed.
# ranges count the bytes of the file itself
_HTTP: dict[str, Any] = {"headers": {"Accept-Encoding": "identity"}}
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
        info = None if self.protocol in ("http", "https") else info_of(self)
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
    """fsspec's description of a file or prefix: "size", "type" and more; None if there is none.

    Raises:
        UserError: the server cannot be reached, refuses access, or a package is missing.
    """
    fs, inside = file_system(path)
    try:
        return retrying(path, lambda: fs.info(inside, **_FRESH.get(path.protocol, {})))
    except RemoteError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def stamp_of_info(path: RemotePath, info: dict[str, Any]) -> Stamp:
    """Size and a hash of the version (ETag, or else time of modification; 0 where the server states neither).

    Raises:
        RemoteError: the server does not state the size, or it is not a file.
    """
    if info["type"] != "file":
        raise RemoteError(path, "a folder, not a file")
    if not isinstance(info.get("size"), int):
        raise RemoteError(
            path, "the server does not state the file's size; download it, and give the local file"
        )
    version = next((str(info[key]) for key in (*_VERSION_KEYS, *_TIME_KEYS) if info.get(key)), "")
    if not version:
        return info["size"], 0
    digest = hashlib.blake2b(version.encode(), digest_size=8).digest()
    return info["size"], int.from_bytes(digest, "little", signed=True)


def stamp_of_url(path: RemotePath) -> Stamp:
    """The stamp of the file as it is now.

    Raises:
        RemoteError: there is none, or it cannot be examined.
    """
    fs, inside = file_system(path)
    return stamp_of_info(path, retrying(path, lambda: fs.info(inside, **_FRESH.get(path.protocol, {}))))


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
    if protocol in ("http", "https"):
        aiohttp: Any = _module("aiohttp", example)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_NO_ANSWER, sock_read=_NO_ANSWER)
        options["client_kwargs"] = {"timeout": timeout}
    try:
        return fsspec.filesystem(protocol, **options)
    except ImportError as error:  # "Install s3fs to access S3"
        raise UserError(f"{protocol}:// files cannot be read ({_first_line(error)}); {_EXTRA}") from error


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
            cause = _true_cause(error)
            reason, passing = _explain(cause, path.protocol)
            if attempt == ATTEMPTS or not passing:
                tried = f", {attempt} attempts" if attempt > 1 else ""
                raise RemoteError(path, f"{reason}{tried}") from cause
        time.sleep(FIRST_WAIT * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
    raise AssertionError("unreachable")


def _true_cause(error: BaseException) -> BaseException:
    """fsspec's `info` of a web server turns every error into a FileNotFoundError."""
    cause = error.__cause__
    if cause is not None and isinstance(error, FileNotFoundError) and _status(cause) not in (None, 404, 410):
        return cause
    return error


def _status(error: BaseException | None) -> int | None:
    """The HTTP status of an error of aiohttp; 0 for another of its errors, None for one of another library."""
    if error is None or not type(error).__module__.startswith("aiohttp"):
        return None
    return int(getattr(error, "status", 0))


_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a profile; FSSPEC_S3_ANON=true for a public bucket",
    "gs": "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS",
    "hf": "run `hf auth login`, and accept the data set's terms on its page",
}


def _explain(error: BaseException, protocol: str) -> tuple[str, bool]:
    """(the reason on one line, whether the same request may succeed later)."""
    hint = _CREDENTIALS.get("gs" if protocol == "gcs" else protocol, "use a URL that needs no login")
    status = _status(error) or getattr(getattr(error, "response", None), "status_code", None)
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
    if isinstance(error, ValueError) and "range requests" in str(error):
        return (
            "the server cannot send parts of a file (range requests); download it, and give the local file",
            False,
        )
    if status:  # the library's text may contain a signed URL
        return f"HTTP status {status}", status >= 500 or status in (408, 429)
    passing = not isinstance(error, (ImportError, TypeError, ValueError))
    return f"{type(error).__name__}: {_first_line(error)}", passing


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0][:200]
