"""Bytes of local and remote files: open files for readers of archives and tables, and spans that are read together."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar, cast

from beton_tools.base.errors import UserError
from beton_tools.base.user_files import open_regular, open_user_file
from beton_tools.sources.remote import RemotePath, SourcePath, Stamp, read_range, stamp_of_url
from beton_tools.sources.servers import RemoteError, module

BLOCK = 4 << 20  # bytes per request while an archive is indexed; takes longer than a round trip
_BLOCKS = 3  # that are kept: labels of WebDataset samples may lie before the image
# bytes between two spans that are read rather than requested separately: labels, tar headers
_MAX_GAP = 64 << 10
_MAX_REQUEST = 32 << 20
_CONNECTIONS = 8

P = TypeVar("P")
T = TypeVar("T")


class RemoteFile(io.RawIOBase):
    """A remote file, opened for reading at any position; no read returns too little.

    stamp: of the file that is read; every read compares it. None: as the file is now.
    read_ahead: request blocks of BLOCK bytes, for a file that is read from its start to its end.
    """

    def __init__(self, path: RemotePath, read_ahead: bool = True, stamp: Stamp | None = None) -> None:
        super().__init__()
        self.path, self.stamp, self._at = path, stamp or stamp_of_url(path), 0
        self._fetch: Callable[[int, int], bytes] = self._read_range
        if read_ahead:
            caching = module("fsspec.caching", path.protocol)
            self._fetch = caching.BlockCache(BLOCK, self._read_range, self.stamp[0], _BLOCKS)._fetch

    def _read_range(self, start: int, end: int) -> bytes:
        return read_range(self.path, self.stamp, start, min(end, self.stamp[0]))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.stamp[0]}[whence]
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        begin, rest = self._at, max(self.stamp[0] - self._at, 0)
        self._at += rest if size is None or size < 0 else min(size, rest)
        return self._fetch(begin, self._at)

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def open_regular_source(path: SourcePath, read_ahead: bool = True, stamp: Stamp | None = None) -> BinaryIO:
    """Open a regular local file, or a remote one, of which read_ahead and stamp are as in `RemoteFile`.

    Raises:
        OSError: as `open_regular`, or a RemoteError.
        UserError: a package is missing.
    """
    return cast(BinaryIO, RemoteFile(path, read_ahead, stamp)) if isinstance(path, RemotePath) else open_regular(path)


def open_source_file(path: SourcePath, expected: str, read_ahead: bool = True) -> BinaryIO:
    """Open a local or remote file for reading; local files are checked by `open_user_file`.

    Raises UserError: it does not exist, cannot be opened, or is not a regular file.
    """
    if not isinstance(path, RemotePath):
        return open_user_file(path, expected)
    try:
        return open_regular_source(path, read_ahead)
    except RemoteError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give {expected}") from error


def map_files(function: Callable[[P], T], paths: Sequence[P]) -> Iterator[T]:
    """`function` of every path, in order; of several remote files, or spans of them, at a time."""
    if len(paths) < 2 or not isinstance(paths[0], (RemotePath, RemoteSpan)):
        yield from map(function, paths)
        return
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        try:
            yield from pool.map(function, paths)
        finally:
            pool.shutdown(cancel_futures=True)


# spans ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RemoteSpan:
    """`length` bytes at `offset` of a remote archive.

    stamp: that of the archive when it was indexed.
    """

    path: RemotePath
    offset: int
    length: int
    stamp: Stamp

    @property
    def group(self) -> tuple[RemotePath, int]:
        """Spans of the same BLOCK are read in one request."""
        return self.path, self.offset // BLOCK

    @property
    def end(self) -> int:
        return self.offset + self.length

    def read(self) -> bytes:
        return read_range(self.path, self.stamp, self.offset, self.end)


def read_spans(spans: Sequence[RemoteSpan]) -> dict[RemoteSpan, bytes]:
    """The bytes of spans, requested at the same time; neighbours in one request.

    Raises RemoteError: an archive cannot be read, or has changed after it was indexed.
    """
    whole: list[RemoteSpan] = []  # requests
    parts: list[list[RemoteSpan]] = []  # the spans of each
    for span in sorted(spans, key=lambda span: (span.path, span.offset)):
        last = whole[-1] if whole else span
        end = max(last.end, span.end)
        if (
            whole
            and last.path == span.path
            and span.offset - last.end <= _MAX_GAP
            and end - last.offset <= _MAX_REQUEST
        ):
            whole[-1] = RemoteSpan(span.path, last.offset, end - last.offset, span.stamp)
            parts[-1].append(span)
        else:
            whole.append(span)
            parts.append([span])
    contents = {}
    for request, data, inside in zip(whole, map_files(RemoteSpan.read, whole), parts, strict=True):
        for span in inside:
            contents[span] = data[span.offset - request.offset :][: span.length]
    return contents
