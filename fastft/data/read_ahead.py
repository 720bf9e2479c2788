"""Read the pages of coming blocks into the page cache, in the order of the files, while the present block is used."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Event

import numpy as np

from fastft.data.block_order import Span

# Linux reads at most the window of its read-ahead for one request, 128 KiB by default (force_page_cache_ra, mm/readahead.c)
REQUEST_BYTES = 128 << 10
BLOCKS_AHEAD = 1


class ReadAhead:
    """Requests each block of a pass when the block before it begins. Pages that are in the page cache cost nothing."""

    def __init__(self, block_of_position: np.ndarray, spans_of: Callable[[int], Sequence[Span]]) -> None:
        """block_of_position: (n,), ascending: the block of each sample of the pass. spans_of: the pages of a block."""
        changes = np.flatnonzero(np.diff(block_of_position.astype(np.int64))) + 1
        self.begins = np.append(0, changes)  # position at which each block begins
        self.blocks = block_of_position[self.begins].astype(np.int64).tolist()
        self.spans_of = spans_of
        self.position = self.requested = 0
        self._thread = ThreadPoolExecutor(1, "ReadAhead")
        self._closed = Event()

    def advance(self, count: int) -> None:
        """The next `count` samples of the pass are about to be read."""
        self.position += count
        current = int(np.searchsorted(self.begins, self.position - 1, side="right")) - 1
        while self.requested < min(current + 1 + BLOCKS_AHEAD, len(self.blocks)):
            self._thread.submit(self._request, self.blocks[self.requested])
            self.requested += 1

    def _request(self, block: int) -> None:
        for span in self.spans_of(block):
            for offset in range(span.offset, span.offset + span.num_bytes, REQUEST_BYTES):
                if self._closed.is_set():
                    return
                with suppress(OSError):  # only advice: reading the samples reports errors
                    os.posix_fadvise(span.descriptor, offset, REQUEST_BYTES, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        """Stop requesting and end the thread; closing twice is harmless."""
        self._closed.set()
        self._thread.shutdown(cancel_futures=True)
