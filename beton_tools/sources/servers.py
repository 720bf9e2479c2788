"""Servers of remote files: fsspec's file systems, repeated requests, and what their errors mean."""

from __future__ import annotations

import importlib
import random
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

from beton_tools.base.console import hide_secrets
from beton_tools.base.errors import UserError

ATTEMPTS = 5  # of one request, beside those of the file system's own library
FIRST_WAIT = 0.5  # seconds before the second attempt; it doubles
WEB = ("http", "https")
PROTOCOLS = ("s3", "hf", *WEB)
IDENTITY = {"Accept-Encoding": "identity"}  # ranges count the bytes of the file itself
NO_RANGES = "the server cannot send parts of a file (range requests); download it, and give the local file"
_NO_ANSWER = 60  # seconds without data after which a connection counts as broken
_EXTRA = "pip install 'fastft[cloud]'"
_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a profile; FSSPEC_S3_ANON=true for a public bucket",
    "hf": "run `hf auth login`, and accept the data set's terms on its page",
}

T = TypeVar("T")


class AccessDenied(UserError):
    """The server refuses access. S3 and Google do so for a missing file too, without the right to list."""


class RemoteError(OSError):
    """A remote file cannot be read. `filename` is its URL, `strerror` the reason."""

    def __init__(self, url: object, reason: str) -> None:
        super().__init__(0, reason, str(url))

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteError, (self.filename, self.strerror)

    def as_user_error(self) -> UserError:
        kind = AccessDenied if _is_denial(self.__cause__) else UserError
        return kind(f"{self.filename}: cannot be read ({self.strerror})")


@lru_cache
def file_system(protocol: str) -> Any:
    """fsspec's file system of a protocol. Listings are not cached: a file that changes must be noticed.

    Raises UserError: a package is missing.
    """
    fsspec = module("fsspec", protocol)
    options: dict[str, Any] = {"use_listings_cache": False} if protocol == "s3" else {}
    if protocol in WEB:
        timeout = module("aiohttp", protocol).ClientTimeout(total=None, sock_connect=_NO_ANSWER, sock_read=_NO_ANSWER)
        options = {"headers": IDENTITY, "client_kwargs": {"timeout": timeout, "auto_decompress": False}}
    try:
        return fsspec.filesystem(protocol, **options)
    except ImportError as error:  # "Install s3fs to access S3"
        raise UserError(f"{protocol}:// files cannot be read ({_first_line(error)}); {_EXTRA}") from error


def module(name: str, protocol: str) -> Any:
    """A package that the protocol needs; a UserError if it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{protocol}:// files need the package {name}; {_EXTRA}") from error


def retrying(url: object, protocol: str, request: Callable[[], T]) -> T:
    """The value of `request()`, tried again after errors that may pass, such as a connection that broke.

    Raises RemoteError: the last error, on one line; its cause is the error that the library raised.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return request()
        except Exception as error:  # each file system has exceptions of its own
            reason, passing = _explain(error, protocol)
            if attempt == ATTEMPTS or not passing:
                tried = f", {attempt} attempts" if attempt > 1 else ""
                raise RemoteError(url, f"{reason}{tried}") from error
        time.sleep(FIRST_WAIT * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
    raise AssertionError("unreachable")


def _explain(error: Exception, protocol: str) -> tuple[str, bool]:
    """(the reason on one line, whether the same request may succeed later)."""
    hint = _CREDENTIALS.get(protocol, "use a URL that needs no login")
    status = _status_of(error)
    if isinstance(error, RemoteError):
        return str(error.strerror), True
    if isinstance(error, FileNotFoundError):
        text = _first_line(error)
        return (text if "bucket" in text else "no such file"), False
    if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"):
        return f"no credentials: {hint}", False
    if _is_denial(error):
        what = f"HTTP status {status}" if status else _first_line(error)
        return f"access denied ({what}); {hint}", False
    if status:  # the library's text repeats the URL
        return f"HTTP status {status}", status >= 500 or status in (408, 429)
    if isinstance(error, ValueError) and not _is_of_aiohttp(error):
        return _first_line(error), False
    passing = not isinstance(error, (ImportError, TypeError, ValueError))
    return f"{type(error).__name__}: {_first_line(error)}", passing


def _is_of_aiohttp(error: BaseException | None) -> bool:
    return type(error).__module__.startswith("aiohttp")


def _status_of(error: BaseException | None) -> int:
    """HTTP status; 0 without one."""
    response = error if _is_of_aiohttp(error) else getattr(error, "response", None)
    return getattr(response, "status", 0) or getattr(response, "status_code", 0)


def _is_denial(error: BaseException | None) -> bool:
    return isinstance(error, PermissionError) or _status_of(error) in (401, 403)


def _first_line(error: BaseException) -> str:
    return hide_secrets((str(error) or type(error).__name__).partition("\n")[0])[:200]
