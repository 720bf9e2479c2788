"""Write a `.beton` page by page under a temporary name, with a journal that survives kill -9.

`X.beton.part` grows by whole pages. `X.beton.part.journal` gets one line per page, which lists the page's samples. A
later run with the same inputs continues after the last page that is in the journal, has the right checksum, and whose
images have not changed. Only a complete file gets the name `X.beton`.
"""

from __future__ import annotations

import json
import os
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from beton_tools.base.atomic import sync
from beton_tools.base.errors import CORRECT, UserError, report_disk_errors
from beton_tools.base.user_files import open_own, open_user_file, try_lock, was_replaced
from beton_tools.read.format import JPEG_MODE, RAW_MODE, SAMPLE_DTYPE, first_page_offset, write_tables
from beton_tools.write.images import DAMAGED, RAW, EncodedImage

JOURNAL_VERSION = 2
SYNC_EVERY = 16  # pages between fsyncs: a power failure loses at most these, and kill -9 loses none


@dataclass(frozen=True, slots=True)
class PageRecord:
    """The contents of one page.

    Attributes:
        next_position: Position in the order. All images before it are in this page, in an earlier one, or skipped.
        stamp: CRC-32 of the stamps of the images that this page contains or skips.
        samples: (position in the order, height, width, bytes, label, how, content id) for each image, in page order.
        skipped: (position in the order, reason).
    """

    crc32: int
    next_position: int
    stamp: int
    samples: list[tuple[int, int, int, int, int, str, int]]
    skipped: list[tuple[int, str]]


@dataclass
class Written:
    """A file's tables. Arrays have a row for every planned sample, and rows 0..count-1 are filled."""

    metadata: np.ndarray  # SAMPLE_DTYPE (N,)
    sizes: np.ndarray  # int64 (N,)
    positions: np.ndarray  # int64 (N,): sample id -> position in the order
    contents: np.ndarray  # uint64 (N,): content ids
    count: int = 0
    page_crcs: list[int] = field(default_factory=list)
    skipped: list[tuple[int, str]] = field(default_factory=list)
    encodings: Counter[str] = field(default_factory=Counter)
    damaged: list[int] = field(default_factory=list)  # sample ids

    def add(self, record: PageRecord, page_offset: int) -> None:
        ptr = page_offset
        for position, height, width, size, label, how, content in record.samples:
            mode = RAW_MODE if how.startswith(RAW) else JPEG_MODE
            self.metadata[self.count] = ((mode, width, height, ptr), label)
            self.sizes[self.count] = size
            self.positions[self.count] = position
            self.contents[self.count] = content
            self.encodings[how] += 1
            if how.removeprefix(RAW) == DAMAGED:
                self.damaged.append(self.count)
            self.count += 1
            ptr += size
        self.page_crcs.append(record.crc32)
        self.skipped += record.skipped


class PageFile:
    """Appends encoded images. `seal` and `publish` complete the `.beton`.

    This is a context manager. Leaving it before `publish` keeps the part file for a later run.
    """

    def __init__(self, path: Path, page_size: int, fingerprint: str, stamps: np.ndarray) -> None:
        """Open the part file and continue what an earlier run with the same fingerprint and stamps left.

        Args:
            stamps: One row per image, in writing order, that changes when the image's content changes.

        Raises:
            UserError: Another process writes the same file, or the disk is full.
        """
        n = len(stamps)
        self.path, self.page_size, self.stamps = path, page_size, stamps
        self.part = path.with_name(path.name + ".part")
        self.journal_path = path.with_name(path.name + ".part.journal")
        self.data_start = first_page_offset(n, page_size)
        self.written = Written(
            np.zeros(n, SAMPLE_DTYPE), np.zeros(n, np.int64), np.zeros(n, np.int64), np.zeros(n, np.uint64)
        )
        self.next_position = self._page_begin = 0
        self._page, self._used = memoryview(bytearray(page_size)), 0
        self._samples: list[tuple[int, int, int, int, int, str, int]] = []
        self._skipped: list[tuple[int, str]] = []
        with self._disk_errors():
            self._file = _open_locked(self.part)
            try:
                self._journal = self._resume(fingerprint)
            except BaseException:
                self._file.close()
                raise

    def __enter__(self) -> PageFile:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._journal, self._file):
            with suppress(OSError):  # on a full disk, for what is still in the buffer. The write before has reported it
                file.close()

    def append(self, image: EncodedImage, label: int) -> None:
        """Append the image at `next_position`, which must fit a page."""
        if self._used + len(image.data) > self.page_size:
            self._end_page()
        end = self._used + len(image.data)
        self._page[self._used : end] = image.data
        self._used = end
        self._samples.append(
            (self.next_position, image.height, image.width, len(image.data), label, image.how, image.content)
        )
        self.next_position += 1

    def skip(self, reason: str) -> None:
        """Record that the image at `next_position` is not stored."""
        self._skipped.append((self.next_position, reason))
        self.next_position += 1

    def seal(self, label_sets: np.ndarray | None = None) -> Written:
        """Write the last page, the label sets (planned images, K), and the tables.

        This makes the part file a complete `.beton`.
        """
        if self._samples or self._skipped:
            self._end_page()
        with self._disk_errors():
            done = self.written
            if label_sets is not None:
                self._write_label_sets(label_sets[done.positions[: done.count]])
            file_size = write_tables(
                self._file,
                done.metadata[: done.count],
                done.sizes[: done.count],
                page_size=self.page_size,
                data_start=self.data_start,
                data_end=self._page_offset(len(done.page_crcs)),
                set_size=0 if label_sets is None else label_sets.shape[1],
            )
            self._file.truncate(file_size)
            _flush(self._file)
        return self.written

    def _write_label_sets(self, sets: np.ndarray) -> None:
        """Append pages that contain whole rows from sets (count, K), and point the metadata to them."""
        count, classes = sets.shape
        per_page = self.page_size // classes
        for first in range(0, count, per_page):
            rows, offset = sets[first : first + per_page], self._page_offset(len(self.written.page_crcs))
            page = rows.tobytes().ljust(self.page_size, b"\0")
            self._file.seek(offset)
            self._file.write(page)
            self.written.page_crcs.append(zlib.crc32(page))
            self.written.metadata["f1"][first : first + len(rows)] = offset + classes * np.arange(len(rows))

    def publish(self) -> None:
        """Rename the sealed file to its final name."""
        self.part.replace(self.path)
        sync(self.path.parent)
        self.journal_path.unlink()

    def _page_offset(self, page: int) -> int:
        return self.data_start + page * self.page_size

    def _end_page(self) -> None:
        self._page[self._used :] = bytes(self.page_size - self._used)
        stamp = self._stamp(self._page_begin, self.next_position)
        record = PageRecord(zlib.crc32(self._page), self.next_position, stamp, self._samples, self._skipped)
        number = len(self.written.page_crcs)
        with self._disk_errors():
            self._file.seek(self._page_offset(number))
            self._file.write(self._page)
            to_disk = (number + 1) % SYNC_EVERY == 0
            _flush(self._file, to_disk)
            # not asdict: it copies every sample, which takes a fifth of the time for a page
            self._journal.write(_line({name: getattr(record, name) for name in PageRecord.__slots__}))
            _flush(self._journal, to_disk)
        self.written.add(record, self._page_offset(number))
        self._used, self._samples, self._skipped, self._page_begin = 0, [], [], self.next_position

    def _stamp(self, start: int, stop: int) -> int:
        return zlib.crc32(self.stamps[start:stop].tobytes())

    def _resume(self, fingerprint: str) -> BinaryIO:
        """Continue what an earlier run with the same fingerprint left. Returns the journal, open for appending."""
        kept = [_line(_first_entry(fingerprint))]
        for number, (line, record) in enumerate(self._finished_pages(fingerprint)):
            self.written.add(record, self._page_offset(number))
            self.next_position = self._page_begin = record.next_position
            kept.append(line)
        self._file.truncate(self._page_offset(len(self.written.page_crcs)) if len(kept) > 1 else 0)
        return self._replace_journal(kept)

    def _replace_journal(self, lines: list[bytes]) -> BinaryIO:
        """Write the new journal beside the old one and rename it, so that a kill at any time leaves a complete one."""
        new = self.journal_path.with_name(self.journal_path.name + ".new")
        new.unlink(missing_ok=True)  # anything but a regular file could block
        journal = new.open("wb")
        journal.writelines(lines)
        _flush(journal)
        new.replace(self.journal_path)
        sync(self.path.parent)
        return journal

    def _finished_pages(self, fingerprint: str) -> Iterator[tuple[bytes, PageRecord]]:
        if not self.journal_path.exists():
            return
        with open_user_file(self.journal_path, "the journal that a conversion wrote, or remove it") as file:
            lines = file.read().splitlines(keepends=True)
        if not lines or _parse(lines[0]) != _first_entry(fingerprint):
            return
        begin = 0
        for number, line in enumerate(lines[1:]):
            entry = _parse(line)
            if entry is None:
                return
            record = PageRecord(**{**entry, "samples": [tuple(s) for s in entry["samples"]]})
            self._file.seek(self._page_offset(number))
            if zlib.crc32(self._file.read(self.page_size)) != record.crc32:
                return
            if self._stamp(begin, record.next_position) != record.stamp:
                return
            begin = record.next_position
            yield line, record

    def _disk_errors(self) -> AbstractContextManager[None]:
        return report_disk_errors(f"{self.part}: page {len(self.written.page_crcs):,}", CORRECT)


def _open_locked(path: Path) -> BinaryIO:
    """Open and lock a file for reading and writing.

    The lock is released when the file is closed or the process ends.
    """
    file = os.fdopen(open_own(path, os.O_RDWR), "r+b")
    if not try_lock(file) or was_replaced(file, path):
        file.close()
        raise UserError(f"{path}: another process is writing it. Wait for it, or give another name")
    return file


def _first_entry(fingerprint: str) -> dict[str, Any]:
    return {"version": JOURNAL_VERSION, "fingerprint": fingerprint}


def _line(entry: dict[str, Any]) -> bytes:
    text = json.dumps(entry, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _parse(line: bytes) -> Any:
    """Parse a journal line. Returns None if the line is incomplete or damaged."""
    text = line[9:-1]
    if line[-1:] != b"\n" or line[:9] != b"%08x " % zlib.crc32(text):
        return None
    return json.loads(text)


def _flush(file: BinaryIO, to_disk: bool = True) -> None:
    file.flush()
    if to_disk:
        os.fsync(file.fileno())
