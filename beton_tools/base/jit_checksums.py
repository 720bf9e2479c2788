"""Checksums for Numba's cache of compiled code.

Numba unpickles its cache files without a check, so that a damaged one ends every command that needs it, with a traceback
or worse: a changed bit in machine code goes unnoticed. Here each file ends with a checksum; a file without the right one is
deleted and its function compiled again.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from beton_tools.base.user_files import open_regular

_CACHING = "numba.core.caching"
_MAGIC = b"checksum"  # after the pickle, whose reader ignores what follows
_DIGEST_BYTES = 16
_warned: set[Path] = set()  # folders


def check_cache_files() -> None:
    """Let Numba write and check checksums, from its import on. Does not import Numba."""
    if _CACHING in sys.modules:
        _install(sys.modules[_CACHING])
    elif not any(isinstance(finder, _InstallOnImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _InstallOnImport())


class _InstallOnImport(MetaPathFinder):
    """Calls `_install` when Numba's module has been imported."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _CACHING:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _install(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _install(caching: ModuleType) -> None:
    if not issubclass(caching.IndexDataCacheFile, _Checksums):
        bases = (_Checksums, caching.IndexDataCacheFile)
        caching.IndexDataCacheFile = type("CheckedCacheFile", bases, {})  # type: ignore[attr-defined]


class _Checksums:
    """Mixin for `numba.core.caching.IndexDataCacheFile`: its two kinds of files, index and data, end with a checksum."""

    _index_path: str

    def load(self, key: Any) -> Any:
        """The cached code; None, so that the function is compiled, if there is none or it is damaged."""
        with suppress(OSError):
            return super().load(key)  # type: ignore[misc]

    def save(self, key: Any, data: Any) -> None:
        """Without the space or the permission to write, the code is used without being cached."""
        with suppress(OSError):
            super().save(key, data)  # type: ignore[misc]

    def _load_index(self) -> dict[Any, str]:
        return super()._load_index() if _is_intact(Path(self._index_path)) else {}  # type: ignore[misc]

    def _load_data(self, name: str) -> Any:
        path = Path(self._data_path(name))  # type: ignore[attr-defined]
        if not _is_intact(path):
            raise FileNotFoundError(path)  # for `load`
        return super()._load_data(name)  # type: ignore[misc]

    @contextmanager
    def _open_for_write(self, path: str) -> Iterator[BinaryIO]:
        with super()._open_for_write(path) as file:  # type: ignore[misc]  # a temporary file, renamed at the end
            yield file
            file.flush()
            file.write(_MAGIC + _digest(Path(file.name).read_bytes()))


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest()


def _is_intact(path: Path) -> bool:
    """Whether the file exists and ends with its checksum. A damaged file is deleted, with a warning."""
    try:
        with open_regular(path) as file:
            data = file.read()
    except FileNotFoundError:
        return False
    except OSError:
        data = b""
    content, checksum = data[: -len(_MAGIC) - _DIGEST_BYTES], data[-len(_MAGIC) - _DIGEST_BYTES :]
    if checksum == _MAGIC + _digest(content):
        return True
    if path.parent not in _warned:
        _warned.add(path.parent)
        print(
            f"fastft: compiled code in {path.parent} is damaged ({path.name}); compiling it again",
            file=sys.stderr,
        )
    with suppress(OSError):
        path.unlink()
    return False
