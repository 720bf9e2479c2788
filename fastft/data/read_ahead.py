"""Read the pages of coming blocks into the page cache, and notes about training files that do not fit it."""

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import NamedTuple

import numpy as np

from beton_tools.base.console import format_bytes
from beton_tools.read.beton_set import BetonSet
from fastft.machine.facts import fits_page_cache, memory_bytes
from fastft.recipe.constants import BLOCKS

MIB = 1 << 20
BLOCKS_AHEAD = 1
# the next, the present, and the one before, which other processes of the machine may still use
BLOCKS_IN_MEMORY = 3
DEFAULT_WINDOW = 128 << 10  # Linux's default read_ahead_kb

# silent unless the program configures logging; `fastft train` prints the notes itself
_log = logging.getLogger("fastft.data")
_log.addHandler(logging.NullHandler())


class Span(NamedTuple):
    """Bytes of a file."""

    descriptor: int
    offset: int
    num_bytes: int


def request_window(descriptor: int) -> int:
    """The most bytes that one POSIX_FADV_WILLNEED reads: the kernel's read-ahead window of the device, 128 KiB if not known.

    The rest of a longer request would be ignored (force_page_cache_ra in Linux's mm/readahead.c).
    """
    device = os.fstat(descriptor).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    # a partition has no window of its own, its disk does
    for folder in (f"/sys/class/bdi/{number}", f"/sys/dev/block/{number}/../bdi"):
        with suppress(OSError, ValueError):
            return max(1, int(Path(folder, "read_ahead_kb").read_text(encoding="ascii"))) << 10
    return DEFAULT_WINDOW


def read_exactly(descriptors: Sequence[int]) -> None:
    """Turn the kernel's own read-ahead off for these files: it would read pages of other blocks, which are not needed soon."""
    for descriptor in descriptors:
        with suppress(OSError):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)


class ReadAhead:
    """Requests each block of a pass when the block before it begins. Pages that are in the page cache cost nothing.

    The pages are not read by this process: they would count as used, and stay longer than those that are still needed.
    """

    def __init__(
        self, block_of_position: np.ndarray, spans_of: Callable[[int], Sequence[Span]], *, release: bool
    ) -> None:
        """block_of_position: (n,), ascending: the block of each sample of the pass. spans_of: the pages of a block.

        release: give the memory of used blocks back, because Linux drops requests that would first need memory from a
        full control group.
        """
        changes = np.flatnonzero(np.diff(block_of_position.astype(np.int64))) + 1
        self.begins = np.append(0, changes)  # position at which each block begins
        self.blocks = block_of_position[self.begins].astype(np.int64).tolist()
        self.spans_of, self.release = spans_of, release
        self.position = self.requested = 0
        self._windows: dict[int, int] = {}
        self._thread = ThreadPoolExecutor(1, "ReadAhead")
        self._closed = Event()

    def advance(self, count: int) -> None:
        """The next `count` samples of the pass are about to be read."""
        self.position += count
        current = int(np.searchsorted(self.begins, self.position - 1, side="right")) - 1
        while self.requested < min(current + 1 + BLOCKS_AHEAD, len(self.blocks)):
            used = self.requested - BLOCKS_IN_MEMORY
            if self.release and used >= 0:
                self._thread.submit(self._release, self.blocks[used])
            self._thread.submit(self._request, self.blocks[self.requested])
            self.requested += 1

    def _release(self, block: int) -> None:
        for span in self.spans_of(block):
            with suppress(OSError):
                os.posix_fadvise(span.descriptor, span.offset, span.num_bytes, os.POSIX_FADV_DONTNEED)

    def _request(self, block: int) -> None:
        for span in self.spans_of(block):
            if span.descriptor not in self._windows:
                self._windows[span.descriptor] = request_window(span.descriptor)
            window, end = self._windows[span.descriptor], span.offset + span.num_bytes
            for offset in range(span.offset, end, window):
                if self._closed.is_set():
                    return
                with suppress(OSError):  # only advice: reading the samples reports errors
                    os.posix_fadvise(
                        span.descriptor, offset, min(window, end - offset), os.POSIX_FADV_WILLNEED
                    )

    def close(self) -> None:
        """Stop requesting and end the thread; closing twice is harmless."""
        self._closed.set()
        self._thread.shutdown(cancel_futures=True)


# notes ---------------------------------------------------------------------------------------------------------------


def log_notes(notes: Sequence[str]) -> None:
    """Log each as a warning of `fastft.data`."""
    for note in notes:
        _log.warning(note)


def data_notes(betons: BetonSet, order: str, block_mib: int) -> list[str]:
    """Notes about files that are read in this order, one line each."""
    available = memory_bytes()[1]
    notes = []
    if missing := betons.missing_parts:
        notes.append(f"{betons.title}: parts {missing} of the conversion are not among the files")
    if fits_page_cache(betons.file_size, available):
        return notes
    size, free = format_bytes(betons.file_size), format_bytes(available)
    too_large = f"{betons.title}: {size} do not fit the page cache ({free} available)"
    blocks = BLOCKS_IN_MEMORY * block_mib * MIB
    if order != BLOCKS:
        notes.append(
            f"{too_large}: every epoch reads images from the disk; data.order=blocks reads each page once"
        )
    elif not fits_page_cache(blocks, available):
        notes.append(
            f"{too_large}, nor do {BLOCKS_IN_MEMORY} blocks of {block_mib} MiB: reduce data.block_mib"
        )
    else:
        notes.append(f"{too_large}: every epoch reads each page once (data.order=blocks)")
    return notes
