"""`njit`: compile a function with Numba and cache the machine code, with checksums (for the folder see `jit_cache`).

Numba runs what it finds in its cache: a damaged file ends the process without a message, another user's file is another
user's code, and a full disk or an unreadable folder ends the command. Here a damaged file counts as missing. If others can
write to a file, or if there is no usable folder, everything is compiled each time.
"""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.dispatcher import Dispatcher

_DIGEST = 16  # bytes at the beginning of each file
_WARNED = "FASTFT_JIT_CACHE_WARNED"  # environment variable, so that child processes do not repeat the warning


def njit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Decorate a function like `numba.njit(cache=True, **options)`, but with `_CheckedCache`."""

    def decorate(function: Callable[..., Any]) -> Any:
        compiled = numba.njit(**options)(function)
        if isinstance(compiled, Dispatcher):  # not with NUMBA_DISABLE_JIT
            try:
                setattr(compiled, "_cache", _CheckedCache(function))  # noqa: B010 - not in Numba's type stubs
            except (OSError, RuntimeError) as error:  # Numba raises RuntimeError if it finds no folder to write to
                _warn(error)
        return compiled

    return decorate


class _CheckedCache(FunctionCache):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._cache_file = _CheckedFiles(
            self._cache_path, self._impl.filename_base, self._impl.locator.get_source_stamp()
        )

    def load_overload(self, signature: Any, context: Any) -> Any:
        try:
            return super().load_overload(signature, context)
        except OSError as error:
            _warn(error)
            return None

    def save_overload(self, signature: Any, result: Any) -> None:
        try:
            super().save_overload(signature, result)
        except OSError as error:
            _warn(error)


class _CheckedFiles(IndexDataCacheFile):
    """An index file, which maps each key to a data file's name, and the data files. Each file has a checksum.

    The data files contain their key too, because two processes that compile a function for different types at the same
    time choose the same name.
    """

    def save(self, key: Any, data: Any) -> None:
        super().save(key, (key, data))

    def load(self, key: Any) -> Any:
        found = super().load(key)
        return found[1] if found is not None and found[0] == key else None

    def _load_index(self) -> dict[Any, str]:
        found = self._load_data(self._index_name)
        return found[1] if found is not None and found[0] == (self._version, self._source_stamp) else {}

    def _save_index(self, names: dict[Any, str]) -> None:
        self._save_data(self._index_name, ((self._version, self._source_stamp), names))

    def _load_data(self, name: str) -> Any:
        path = Path(self._data_path(name))
        try:
            with path.open("rb") as file:
                _check_owner(path, os.fstat(file.fileno()))
                stored = file.read()
        except FileNotFoundError:
            return None
        digest, data = stored[:_DIGEST], stored[_DIGEST:]
        return pickle.loads(data) if digest == _digest(data) else None

    def _save_data(self, name: str, data: Any) -> None:
        dumped = self._dump(data)
        with self._open_for_write(self._data_path(name)) as file:
            os.fchmod(file.fileno(), 0o644)  # with any umask, nobody else can write to it
            file.write(_digest(dumped) + dumped)


def _check_owner(path: Path, status: os.stat_result) -> None:
    """Raise PermissionError for a file that somebody else than this user and root can have written."""
    if status.st_uid not in (0, os.getuid()) or status.st_mode & 0o022:
        raise PermissionError(f"{path.name} there can be written to by other users, so it is not run")


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=_DIGEST).digest()


def _warn(error: Exception) -> None:
    """Warn once that code is compiled each time."""
    if _WARNED in os.environ:
        return
    os.environ[_WARNED] = "1"
    folder = os.environ.get("NUMBA_CACHE_DIR", "__pycache__")
    reason = getattr(error, "strerror", None) or error
    advice = "Free some space there or delete it, or set NUMBA_CACHE_DIR to a folder that only you can write to"
    text = f"compiled code cannot be kept in {folder} ({reason}). Each command compiles it again, for a minute or two. {advice}"
    warnings.warn_explicit(
        text, RuntimeWarning, "beton_tools", 1
    )  # one line: Python shows the source of other warnings
