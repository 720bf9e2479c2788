"""The sample order: one global order per epoch, random or by blocks, divided in the same way at any world size.

With `data.order=blocks`, every page is read from the disk once. Use it for files larger than the memory. The pages of
all files are shuffled and divided into blocks of a fixed size, and the samples within a block are shuffled together.
While one block is used, the next one is read, with its pages in file order. In random order, by contrast, if the page
cache cannot hold the file, almost every image is read when its turn comes, from a random place.

With `data.sampling`, images of rare classes occur several times in an epoch, each time with another augmentation, and
some images of frequent classes do not occur in every epoch (`draw_by_class`).

FFCV's QUASI_RANDOM also goes through shuffled pages, but its order depends on the batch size, and it cannot be
distributed.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from threading import Event
from typing import NamedTuple

import numpy as np

from beton_tools.base.console import format_bytes
from beton_tools.base.errors import UserError
from beton_tools.read.beton_set import BetonSet
from fastft.augment.rng import epoch_words
from fastft.data.classes import class_factors
from fastft.machine.facts import fits_page_cache, memory_bytes
from fastft.recipe import count_steps
from fastft.recipe.constants import BLOCKS, NONE, ORDERS, REBALANCING

MIB = 1 << 20
BLOCKS_AHEAD = 1
# the next block, the present one, and the one before, which other processes on the machine may still use
BLOCKS_IN_MEMORY = 3
DEFAULT_WINDOW = 128 << 10  # Linux's default read_ahead_kb
# random bits that order the samples within a block; the block number is above them
SAMPLE_BITS = np.uint64(40)


@dataclass(frozen=True)
class Shard:
    """The part of the data that one process of a distributed run reads.

    Raises:
        UserError: the rank is not in 0..world_size-1.
    """

    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise UserError(
                f"rank {self.rank} with world size {self.world_size}. Give a rank from 0 to the world size minus 1"
            )


@dataclass(frozen=True)
class BatchLayout:
    """The layout of an epoch: its division into optimiser steps, ranks and micro-batches.

    Step t has the samples `order[t * batch_size : (t + 1) * batch_size]` at any world size. Samples at the end of an
    epoch that do not fill a batch are dropped, as in the reference. Rank r reads the r-th contiguous part of every
    step.

    Raises:
        UserError: the batch size is not divisible by world_size * micro_batch, or there are fewer samples than one
            batch.
    """

    num_samples: int
    batch_size: int
    micro_batch: int
    shard: Shard = Shard()

    def __post_init__(self) -> None:
        if not isinstance(self.batch_size, int | np.integer) or self.batch_size < 1:
            raise UserError(f"batch size is {self.batch_size!r}. Give a whole number, 1 or more")
        at_once = self.shard.world_size * self.micro_batch
        if at_once < 1 or self.batch_size % at_once:
            raise UserError(
                f"batch size {self.batch_size} is not a multiple of {self.shard.world_size} processes x "
                f"micro-batch {self.micro_batch}. Change one of the three"
            )
        count_steps(self.num_samples, self.batch_size)

    @property
    def steps(self) -> int:
        return count_steps(self.num_samples, self.batch_size)

    @property
    def rank_batch(self) -> int:
        return self.batch_size // self.shard.world_size

    def rank_order(self, order: np.ndarray, start_step: int = 0) -> np.ndarray:
        """Return this rank's samples from `start_step` on, one micro-batch after another.

        Raises:
            UserError: the epoch has no step `start_step`.
        """
        if not 0 <= start_step <= self.steps:
            raise UserError(f"cannot start at step {start_step}. An epoch has {self.steps} steps")
        whole_steps = order[: self.steps * self.batch_size]
        by_rank = whole_steps.reshape(self.steps, self.shard.world_size, self.rank_batch)
        return by_rank[start_step:, self.shard.rank].reshape(-1)

    def locate(self, index: int, start_step: int = 0) -> tuple[int, int]:
        """Return (step, position of its first image in the step's global batch) for micro-batch number `index`."""
        step, place = divmod(index * self.micro_batch, self.rank_batch)
        return start_step + step, self.shard.rank * self.rank_batch + place


def eval_share(indices: np.ndarray, shard: Shard) -> tuple[np.ndarray, int]:
    """Return the contiguous part of `indices` that this rank evaluates, and where it starts.

    Every index is in exactly one part.
    """
    bounds = np.linspace(0, len(indices), shard.world_size + 1).astype(np.int64)
    return indices[bounds[shard.rank] : bounds[shard.rank + 1]], int(bounds[shard.rank])


# reading ahead --------------------------------------------------------------------------------------------------------


class Span(NamedTuple):
    """A byte range in a file."""

    descriptor: int
    offset: int
    num_bytes: int


def request_window(descriptor: int) -> int:
    """Return the most bytes that one POSIX_FADV_WILLNEED reads.

    This is the device's read-ahead window in the kernel, or 128 KiB if it is unknown. The kernel would ignore the
    rest of a longer request (force_page_cache_ra in Linux's mm/readahead.c).
    """
    device = os.fstat(descriptor).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    # a partition has no window of its own, but its disk has one
    for folder in (f"/sys/class/bdi/{number}", f"/sys/dev/block/{number}/../bdi"):
        with suppress(OSError, ValueError):
            return max(1, int(Path(folder, "read_ahead_kb").read_text(encoding="ascii"))) << 10
    return DEFAULT_WINDOW


def read_exactly(descriptors: Sequence[int]) -> None:
    """Turn off the kernel's own read-ahead for these files.

    It would read pages of other blocks, which are not needed soon.
    """
    for descriptor in descriptors:
        with suppress(OSError):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)


class ReadAhead:
    """Requests each block of a pass when the block before it begins.

    Pages that are already in the page cache cost nothing.

    This process does not read the pages itself: they would count as used, and would stay longer than pages that are
    still needed.
    """

    def __init__(
        self, block_of_position: np.ndarray, spans_of: Callable[[int], Sequence[Span]], *, release: bool
    ) -> None:
        """Set up read-ahead for one pass.

        Args:
            block_of_position: (n,), ascending: the block of each sample in the pass.
            spans_of: returns the pages of a block.
            release: give the memory of used blocks back. This is needed because Linux drops read-ahead requests when
                a control group is full and they would first have to free memory.
        """
        changes = np.flatnonzero(np.diff(block_of_position.astype(np.int64))) + 1
        self.begins = np.append(0, changes)  # position in the pass where each block begins
        self.blocks = block_of_position[self.begins].astype(np.int64).tolist()
        self.spans_of, self.release = spans_of, release
        self.position = self.requested = 0
        self._windows: dict[int, int] = {}
        self._thread = ThreadPoolExecutor(1, "ReadAhead")
        self._closed = Event()

    def advance(self, count: int) -> None:
        """Announce that the next `count` samples of the pass are about to be read."""
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
                with suppress(OSError):  # read-ahead is only advice: reading the samples reports errors
                    os.posix_fadvise(span.descriptor, offset, min(window, end - offset), os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        """Stop requesting and end the thread. Closing twice is harmless."""
        self._closed.set()
        self._thread.shutdown(cancel_futures=True)


# orders of an epoch --------------------------------------------------------------------------------------------------


def epoch_order(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    """Return a permutation of 0..num_samples-1, int64. It is a pure function of its arguments.

    It sorts the raw words of `epoch_words`, because NumPy guarantees that stream but not the stream of `permutation`.
    """
    return np.argsort(epoch_words(seed, epoch, num_samples), kind="stable").astype(np.int64, copy=False)


def draw_by_class(labels_N: np.ndarray, sampling: str, seed: int, epoch: int) -> np.ndarray:
    """Draw the images of an epoch, int64 (N,). The result is a pure function of the arguments.

    Image i appears as i the first time, and as i + r * N when it is drawn again. Its number of draws is the factor of
    its class, rounded up or down at random (systematic sampling in random order), so that each class is drawn within
    one image of its share.
    """
    count = len(labels_N)
    words = epoch_words(seed, epoch, 2 * count + 1)[count:]  # the first words order the epoch
    by_class = np.lexsort((words[:count], labels_N))
    ends = np.cumsum(class_factors(np.bincount(labels_N), sampling)[labels_N[by_class]])
    whole = np.floor(ends * (count / ends[-1]) + words[count] / 2.0**64).astype(np.int64)
    whole = np.minimum(whole, count)
    whole[-1] = count
    times = np.diff(whole, prepend=0)
    return np.repeat(by_class, times) + count * (np.arange(count) - np.repeat(whole - times, times))


@dataclass(frozen=True, eq=False)
class Pages:
    """The pages of all files, P in total, numbered through the files.

    Attributes:
        of_sample: int32 (N,), the page of each sample.
        starts: int64 (F + 1,): file f has the pages starts[f] to starts[f + 1] - 1.
    """

    betons: BetonSet
    of_sample: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, betons: BetonSet) -> "Pages":
        starts = np.append(0, np.cumsum([beton.num_pages for beton in betons.files]))
        of_sample = np.empty(len(betons), np.int32)
        spans = [slice(begin, end) for begin, end in pairwise(betons.starts.tolist())]
        for beton, first, span in zip(betons.files, starts, spans, strict=False):
            of_sample[span] = first + (betons.pointers[span] - beton.data_start) // beton.page_size
        return cls(betons, of_sample, starts)

    def __len__(self) -> int:
        return int(self.starts[-1])

    @cached_property
    def num_bytes(self) -> np.ndarray:
        """Return the size of each page in bytes, int64 (P,)."""
        sizes = [beton.page_size for beton in self.betons.files]
        return np.repeat(np.array(sizes, np.int64), np.diff(self.starts))

    def spans(self, pages: np.ndarray) -> Sequence[Span]:
        """Return the byte range of each page in `pages` (ascending numbers)."""
        files = np.searchsorted(self.starts, pages, side="right") - 1
        spans = []
        for file, page in zip(files.tolist(), pages.tolist(), strict=True):
            beton = self.betons.files[file]
            offset = beton.data_start + (page - int(self.starts[file])) * beton.page_size
            spans.append(Span(beton.descriptor, offset, beton.page_size))
        return spans


def block_of_page(pages: Pages, num_samples: int, seed: int, epoch: int, block_mib: int) -> np.ndarray:
    """Return each page's block in an epoch, uint64 (P,).

    A block has at most `block_mib` MiB, but at least one page.
    """
    words = epoch_words(seed, epoch, num_samples + len(pages))[num_samples:]
    shuffled = np.argsort(words, kind="stable")
    begins = np.cumsum(pages.num_bytes[shuffled]) - pages.num_bytes[shuffled]
    blocks = np.empty(len(pages), np.uint64)
    blocks[shuffled] = begins // (block_mib * MIB)
    return blocks


def block_order(pages: Pages, samples: np.ndarray, seed: int, epoch: int, block_mib: int) -> np.ndarray:
    """Return the samples in the order of an epoch, int64 (n,). The order is a pure function of the arguments.

    Args:
        samples: int64 (n,), ids of the samples to use. Repeated ones, as `SampleOrder.of_epoch` gives them, are
            allowed.
    """
    page_of = pages.of_sample[samples % len(pages.of_sample)]
    blocks = block_of_page(pages, len(samples), seed, epoch, block_mib)[page_of]
    words = epoch_words(seed, epoch, len(samples))
    keys = (blocks << SAMPLE_BITS) | (words >> (np.uint64(64) - SAMPLE_BITS))
    return samples[np.argsort(keys, kind="stable")]


class SampleOrder:
    """The order of given files, samples and settings. It is a pure function of (seed, epoch).

    Raises:
        UserError: the order or the sampling is unknown, sampling by class is requested for multi-label images, or
            `block_mib` is less than 1.
    """

    def __init__(
        self, betons: BetonSet, subset: np.ndarray | None, seed: int, order: str, block_mib: int, sampling: str = NONE
    ) -> None:
        """Set up the order.

        Args:
            subset: int64 (n,), ids of the samples to use; None uses all.
        """
        if order not in ORDERS:
            raise UserError(f"order is {order!r}. Give one of {', '.join(ORDERS)}")
        if sampling not in REBALANCING:
            raise UserError(f"sampling is {sampling!r}. Give one of {', '.join(REBALANCING)}")
        if sampling != NONE and betons.label_sets is not None:
            raise UserError(
                f"sampling is {sampling!r}, but images with several labels have no single class. Give {NONE!r}"
            )
        if block_mib < 1:
            raise UserError(f"block_mib is {block_mib}. Give 1 or more")
        self.betons, self.subset, self.seed, self.block_mib = betons, subset, seed, block_mib
        self.num_samples = len(betons) if subset is None else len(subset)
        self.pages = Pages.of(betons) if order == BLOCKS else None
        if self.pages is not None:
            read_exactly(betons.descriptors.tolist())
        self.sampling = sampling
        self.name = f"{order} of {block_mib} MiB" if order == BLOCKS else order
        self.name += "" if sampling == NONE else f", {sampling} sampling"

    def __len__(self) -> int:
        return self.num_samples

    def of_epoch(self, epoch: int) -> np.ndarray:
        """Return the samples of an epoch, int64 (n,).

        When `data.sampling` draws sample i again, it appears as i + r * N, where N is the number of samples in the
        files.
        """
        samples = np.arange(self.num_samples, dtype=np.int64) if self.subset is None else self.subset
        if self.sampling != NONE:
            again, drawn = np.divmod(
                draw_by_class(self.betons.labels[samples], self.sampling, self.seed, epoch), len(samples)
            )
            samples = samples[drawn] + again * len(self.betons)
        if self.pages is not None:
            return block_order(self.pages, samples, self.seed, epoch, self.block_mib)
        return samples[epoch_order(self.num_samples, self.seed, epoch)]

    def read_ahead(self, epoch: int, samples: np.ndarray) -> ReadAhead | None:
        """Request the pages of `samples`, a part of the epoch in its order. Returns None in random order."""
        pages = self.pages
        if pages is None or len(samples) == 0:
            return None
        blocks = block_of_page(pages, self.num_samples, self.seed, epoch, self.block_mib)
        return ReadAhead(
            blocks[pages.of_sample[samples % len(self.betons)]],
            lambda block: pages.spans(np.flatnonzero(blocks == block)),
            release=not fits_page_cache(self.betons.file_size, memory_bytes()[1]),
        )


def data_notes(betons: BetonSet, order: str, block_mib: int) -> list[str]:
    """Return notes about files that are read in this order, one line each."""
    available = memory_bytes()[1]
    notes = []
    if missing := betons.missing_parts:
        notes.append(f"{betons.title}: parts {missing} of the conversion are missing among the files")
    if fits_page_cache(betons.file_size, available):
        return notes
    size, free = format_bytes(betons.file_size), format_bytes(available)
    too_large = f"{betons.title}: {size} do not fit the page cache ({free} available)"
    blocks = BLOCKS_IN_MEMORY * block_mib * MIB
    if order != BLOCKS:
        notes.append(f"{too_large}, so every epoch reads images from the disk. data.order=blocks reads each page once")
    elif not fits_page_cache(blocks, available):
        notes.append(f"{too_large}, nor do {BLOCKS_IN_MEMORY} blocks of {block_mib} MiB. Reduce data.block_mib")
    else:
        notes.append(f"{too_large}, so every epoch reads each page once (data.order=blocks)")
    return notes
