"""Bytes of remote files: an open file for readers of archives and tables, and spans that are read together."""

from __future__ import annotations

import io
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any, BinaryIO, TypeVar, cast

from beton_tools.base.errors import UserError
from beton_tools.base.user_files import open_regular, open_user_file
from beton_tools.sources.remote import (
    RemoteError,
    RemotePath,
    SourcePath,
    Stamp,
    file_system,
    info_of,
    retrying,
    stamp_of_info,
    stamp_of_url,
)

BLOCK = 4 << 20  # bytes per request while an archive is indexed; takes longer than a round trip
_BLOCKS = 3  # that are kept: labels of WebDataset samples may lie before the image
# bytes between two spans that are read rather than requested separately: labels, tar headers
_MAX_GAP = 64 << 10
_MAX_REQUEST = 32 << 20
_CONNECTIONS = 8

P = TypeVar("P", bound=SourcePath)
T = TypeVar("T")


class RemoteFile(io.RawIOBase):
    """A remote file, opened for reading at any position. A read that breaks off is repeated; none returns too little.

    stamp: that of the file when it was opened.
    """

    def __init__(self, path: RemotePath, stamp: Stamp, handle: Any) -> None:
        super().__init__()
        self.path, self.stamp, self._handle, self._at = path, stamp, handle, 0

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
        rest = max(self.stamp[0] - self._at, 0)
        count = rest if size is None or size < 0 else min(size, rest)
        data = retrying(self.path, lambda: self._read_once(count)) if count else b""
        self._at += count
        return data

    def _read_once(self, count: int) -> bytes:
        self._handle.seek(self._at)
        data = self._handle.read(count)
        if len(data) != count:
            raise RemoteError(self.path, f"{len(data):,} of {count:,} bytes arrived")
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._handle.close()
        super().close()


def open_remote(path: RemotePath, read_ahead: bool = True) -> RemoteFile:
    """Open a remote file.

    Args:
        read_ahead: request blocks of BLOCK bytes, for a file that is read from its start to its end.

    Raises:
        UserError: a package is missing, access is refused, or the server cannot be reached.
        RemoteError: no such file, or the server does not state its size or cannot send parts of it.
    """
    info = info_of(path)
    if info is None:
        raise RemoteError(path, "no such file")
    stamp = stamp_of_info(path, info)
    fs, inside = file_system(path)
    if path.protocol in ("http", "https") and stamp[0] > 1:
        _check_ranges(path, fs, inside, stamp[0])
    how: dict[str, Any] = {"cache_type": "none"}
    if read_ahead:
        how = {"block_size": BLOCK, "cache_type": "blockcache", "cache_options": {"maxblocks": _BLOCKS}}
    return RemoteFile(path, stamp, retrying(path, lambda: fs.open(inside, "rb", **how)))


def _check_ranges(path: RemotePath, fs: Any, inside: str, size: int) -> None:
    """Refuse a server that would send the whole file for every part."""

    def read_last() -> None:
        with fs.open(inside, "rb", cache_type="none", size=size) as file:
            file.seek(size - 1)
            file.read(1)

    retrying(path, read_last)


def open_regular_source(path: SourcePath, read_ahead: bool = True) -> BinaryIO:
    """Open a regular local file, or a remote one.

    Raises:
        OSError: as `open_regular`, or a RemoteError.
        UserError: a package is missing, access is refused, or the server cannot be reached.
    """
    return (
        cast(BinaryIO, open_remote(path, read_ahead)) if isinstance(path, RemotePath) else open_regular(path)
    )


def open_source_file(path: SourcePath, expected: str, read_ahead: bool = True) -> BinaryIO:
    """Open a local or remote file for reading; local files are checked by `open_user_file`.

    Raises:
        UserError: it does not exist, cannot be opened, or is not a regular file.
    """
    if not isinstance(path, RemotePath):
        return open_user_file(path, expected)
    try:
        return open_regular_source(path, read_ahead)
    except RemoteError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give {expected}") from error


def map_files(function: Callable[[P], T], paths: Sequence[P]) -> Iterator[T]:
    """`function` of every path, in order; of several remote files at a time."""
    if len(paths) < 2 or not isinstance(paths[0], RemotePath):
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

    def read(self) -> bytes:
        return read_spans([self])[0]


def read_spans(spans: Sequence[RemoteSpan]) -> list[bytes]:
    """The bytes of spans, requested at the same time; neighbours in one request.

    Raises:
        RemoteError: an archive cannot be read, or has changed after it was indexed.
    """
    numbers: dict[RemotePath, list[int]] = {}
    for number, span in enumerate(spans):
        numbers.setdefault(span.path, []).append(number)
    parts = map_files(lambda path: _read_archive(path, [spans[i] for i in numbers[path]]), list(numbers))
    by_number = dict(zip(chain(*numbers.values()), chain(*parts), strict=True))
    return [by_number[number] for number in range(len(spans))]


def _read_archive(path: RemotePath, spans: list[RemoteSpan]) -> list[bytes]:
    from fsspec.utils import merge_offset_ranges

    _, inside = file_system(path)
    merged = merge_offset_ranges(
        [inside] * len(spans),
        [span.offset for span in spans],
        [span.offset + span.length for span in spans],
        _MAX_GAP,
        _MAX_REQUEST,
    )
    ranges = list(zip(merged[1], merged[2], strict=True))
    blocks = _read_ranges(path, ranges)
    if stamp_of_url(path) != spans[0].stamp:
        raise RemoteError(path, "changed after it was indexed; run the same command again")
    starts = [start for start, _ in ranges]
    contents = []
    for span in spans:
        number = bisect_right(starts, span.offset) - 1
        begin = span.offset - starts[number]
        contents.append(blocks[number][begin : begin + span.length])
    return contents


def _read_ranges(path: RemotePath, ranges: list[tuple[int, int]]) -> list[bytes]:
    """The bytes from start to end of every (start, end), in ascending order."""
    fs, inside = file_system(path)
    done = {(start, end): b"" for start, end in ranges if start == end}

    def request_missing() -> None:
        missing = [key for key in ranges if key not in done]
        starts, ends = [start for start, _ in missing], [end for _, end in missing]
        results = fs.cat_ranges([inside] * len(missing), starts, ends, on_error="return")
        for key, result in zip(missing, results, strict=True):
            if isinstance(result, bytes) and len(result) == key[1] - key[0]:
                done[key] = result
        for result in results:
            if isinstance(result, BaseException):
                raise result
        if len(done) < len(set(ranges)):
            raise RemoteError(path, "fewer bytes arrived than were requested")

    retrying(path, request_missing)
    return [done[key] for key in ranges]
