"""The sample order: one global order per epoch, random or by blocks, divided in the same way at any world size.

With `data.order=blocks`, every page is read from the disk once. Use it for files larger than the memory. All files' pages
are shuffled and divided into blocks with a fixed size, and the samples within a block are shuffled together. While one
block is used, the next one is read, with its pages in file order. In random order, by contrast, if the page cache cannot
hold the file, almost every image is read when its turn comes, from a random place.

With `data.sampling`, images in rare classes occur several times in an epoch, each time with another augmentation, and
some images in frequent classes do not occur in every epoch (`draw_by_class`).

FFCV's QUASI_RANDOM also goes through shuffled pages, but its order depends on the batch size, and it cannot be
distributed.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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
SEGMENT = 1 << 23  # samples that are sorted at once: 28 bytes each while that is done
BUCKETS_PER_SEGMENT = 64  # in random order, so that a segment can be nearly full
CHUNK = 1 << 18  # words that are drawn at once: drawing holds Python's lock, for a millisecond
# random bits that order the samples within a block. The block number is above them
SAMPLE_BITS = np.uint64(40)


@dataclass(frozen=True)
class Shard:
    """The part of the data that one process in a distributed run reads.

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
    """Divides an epoch into optimiser steps, ranks and micro-batches.

    Step t has the samples `order[t * batch_size : (t + 1) * batch_size]` at any world size. Samples at an epoch's end
    that do not fill a batch are dropped, as in the reference. In every step, rank r reads the r-th contiguous part.

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

    def check_step(self, start_step: int) -> None:
        """Raise UserError unless you can start at this step."""
        if not 0 <= start_step <= self.steps:
            raise UserError(f"cannot start at step {start_step}. An epoch has {self.steps} steps")

    def rank_order(self, part: np.ndarray, start_step: int = 0, first: int = 0) -> np.ndarray:
        """Return this rank's samples among `part`, one micro-batch after another. Steps before `start_step` are left out.

        Args:
            part: the epoch's samples from position `first` on.
        """
        begins = np.arange(max(start_step, first // self.batch_size), self.steps) * self.batch_size
        begins = begins[begins < first + len(part)] + self.shard.rank * self.rank_batch - first
        pieces = [part[max(0, begin) : max(0, begin + self.rank_batch)] for begin in begins.tolist()]
        return np.concatenate([part[:0], *pieces])

    def count_before(self, positions: np.ndarray, start_step: int = 0) -> np.ndarray:
        """Count this rank's samples from `start_step` on that lie before each position in the epoch, int64."""
        steps, places = np.divmod(np.minimum(positions, self.steps * self.batch_size), self.batch_size)
        in_step = np.clip(places - self.shard.rank * self.rank_batch, 0, self.rank_batch)
        return np.maximum((steps - start_step) * self.rank_batch + in_step, 0)

    def locate(self, index: int, start_step: int = 0) -> tuple[int, int]:
        """Return (step, position of its first image in the step's global batch) for micro-batch number `index`."""
        step, place = divmod(index * self.micro_batch, self.rank_batch)
        return start_step + step, self.shard.rank * self.rank_batch + place


def eval_share(count: int, shard: Shard) -> tuple[int, int]:
    """Return (begin, end): the contiguous part that this rank evaluates. Each of the `count` samples is in one part."""
    bounds = np.linspace(0, count, shard.world_size + 1).astype(np.int64)
    return int(bounds[shard.rank]), int(bounds[shard.rank + 1])


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
    # a partition has no own window, but its disk has one
    for folder in (f"/sys/class/bdi/{number}", f"/sys/dev/block/{number}/../bdi"):
        with suppress(OSError, ValueError):
            return max(1, int(Path(folder, "read_ahead_kb").read_text(encoding="ascii"))) << 10
    return DEFAULT_WINDOW


def read_exactly(descriptors: Sequence[int]) -> None:
    """Turn off the kernel's own read-ahead for these files.

    It would read pages from other blocks, which are not needed soon.
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

    def __init__(self, begins: np.ndarray, spans_of: Callable[[int], Sequence[Span]], *, release: bool) -> None:
        """Set up read-ahead for one pass.

        Args:
            begins: (blocks + 1,), ascending: the position in the pass where each block begins, then the last block's end.
            spans_of: returns a block's pages.
            release: release used blocks' memory. This is needed because Linux drops read-ahead requests when a control
                group is full and they would first have to free memory.
        """
        self.blocks = np.flatnonzero(np.diff(begins)).tolist()  # blocks that the pass reads
        self.begins = begins[self.blocks]
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


# an epoch's orders ---------------------------------------------------------------------------------------------------


def draw_by_class(labels_N: np.ndarray, sampling: str, seed: int, epoch: int) -> np.ndarray:
    """Draw an epoch's images, int64 (N,). The result is a pure function of the arguments.

    Image i appears as i the first time, and as i + r * N when it is drawn again. An image is drawn in proportion to its
    class's factor, rounded up or down at random (systematic sampling in random order), so a class's total differs from its
    exact share by less than one image.
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
    """All files' pages, P in total, numbered through the files.

    Attributes:
        starts: int64 (F + 1,): file f has the pages starts[f] to starts[f + 1] - 1.
    """

    betons: BetonSet
    starts: np.ndarray

    @classmethod
    def of(cls, betons: BetonSet) -> "Pages":
        return cls(betons, np.append(0, np.cumsum([beton.num_pages for beton in betons.files])))

    def of_samples(self, ids: np.ndarray) -> np.ndarray:
        """Return each sample's page, int64 (b,). They are not stored: 300 million images would need gigabytes."""
        files = self.betons.files_of(ids)
        places = self.betons.pointers[ids] - self._data_starts[files]
        pages: np.ndarray = self.starts[files] + places // self._page_sizes[files]
        return pages

    @cached_property
    def _data_starts(self) -> np.ndarray:
        return np.array([beton.data_start for beton in self.betons.files], np.int64)

    @cached_property
    def _page_sizes(self) -> np.ndarray:
        return np.array([beton.page_size for beton in self.betons.files], np.int64)

    def __len__(self) -> int:
        return int(self.starts[-1])

    @cached_property
    def num_bytes(self) -> np.ndarray:
        """Return each page's bytes, int64 (P,)."""
        return np.repeat(self._page_sizes, np.diff(self.starts))

    def spans(self, pages: np.ndarray) -> Sequence[Span]:
        """Return each page's byte range. pages: ascending numbers."""
        files = np.searchsorted(self.starts, pages, side="right") - 1
        spans = []
        for file, page in zip(files.tolist(), pages.tolist(), strict=True):
            beton = self.betons.files[file]
            offset = beton.data_start + (page - int(self.starts[file])) * beton.page_size
            spans.append(Span(beton.descriptor, offset, beton.page_size))
        return spans


def block_of_page(pages: Pages, num_samples: int, seed: int, epoch: int, block_mib: int) -> np.ndarray:
    """Return each page's block in an epoch, int64 (P,).

    A block has at most `block_mib` MiB, but at least one page.
    """
    words = epoch_words(seed, epoch, len(pages), first=num_samples)  # the first words order the samples
    shuffled = np.argsort(words, kind="stable")
    begins = np.cumsum(pages.num_bytes[shuffled]) - pages.num_bytes[shuffled]
    blocks = np.empty(len(pages), np.int64)
    blocks[shuffled] = begins // (block_mib * MIB)
    return blocks


class EpochOrder(ABC):
    """The order of an epoch's n samples, made in segments, so that it never has to be held or sorted as a whole.

    Each sample has a random word. The word, or the sample's page, determines its bucket. The order has one bucket after
    another, and a segment consists of consecutive buckets. Its samples are found by drawing all words again, which is much
    faster than sorting them. Sorting all samples at once by bucket, then word, then position would give the same order.

    Attributes:
        samples: int64 (n,), the ids of the epoch's samples. None stands for 0 to n - 1.
        num_buckets: how many buckets there are.
    """

    num_buckets: int

    def __init__(self, seed: int, epoch: int, num_samples: int, samples: np.ndarray | None, stop: Event) -> None:
        """Set up the order. stop: ends the work in another thread with `OrderStopped`."""
        self.seed, self.epoch, self.num_samples, self.samples, self.stop = seed, epoch, num_samples, samples, stop

    @abstractmethod
    def bucket_of(self, first: int, words: np.ndarray) -> np.ndarray:
        """Return each sample's bucket, int64. The samples begin at position `first` and have these words."""

    @abstractmethod
    def sort_keys(self, buckets: np.ndarray, words: np.ndarray) -> np.ndarray:
        """Return the keys by which a segment's samples are sorted, uint64."""

    def take(self, positions: np.ndarray) -> np.ndarray:
        return positions if self.samples is None else self.samples[positions]

    @cached_property
    def bucket_begins(self) -> np.ndarray:
        """int64 (num_buckets + 1,): where each bucket begins in the order."""
        counts = np.zeros(self.num_buckets, np.int64)
        for _, _, buckets in self._chunks():
            counts += np.bincount(buckets, minlength=self.num_buckets)
        return np.append(0, np.cumsum(counts))

    @cached_property
    def segments(self) -> list[tuple[int, int]]:
        """Each segment's first bucket, and the first one after it."""
        if self.num_samples <= SEGMENT:
            return [(0, self.num_buckets)]
        cuts = [0]
        while cuts[-1] < self.num_buckets:
            most = self.bucket_begins[cuts[-1]] + SEGMENT
            cuts.append(max(cuts[-1] + 1, int(np.searchsorted(self.bucket_begins, most, side="right")) - 1))
        return list(pairwise(cuts))

    def begin(self, segment: int) -> int:
        """Return the position in the order where a segment begins. After the last segment, it is n."""
        if segment in (0, len(self.segments)):
            return self.num_samples if segment else 0
        return int(self.bucket_begins[self.segments[segment][0]])

    def segment_at(self, position: int) -> int:
        """Return the segment that has this position in the order."""
        begins = [self.begin(segment) for segment in range(len(self.segments))]
        return max(0, int(np.searchsorted(begins, position, side="right")) - 1)

    def make(self, segment: int) -> np.ndarray:
        """Return a segment's samples in their order, int64."""
        low, high = self.segments[segment]
        found = []
        for first, words, buckets in self._chunks():
            chosen = np.flatnonzero((buckets >= low) & (buckets < high))
            found.append((first + chosen, self.sort_keys(buckets[chosen], words[chosen])))
        positions, keys = (np.concatenate(column) for column in zip(*found, strict=True))
        del found
        return self.take(positions[np.argsort(keys, kind="stable")])

    def between(self, begin: int, end: int) -> np.ndarray:
        """Return the samples at the order's positions `begin` to `end` - 1."""
        first, last = self.segment_at(begin), self.segment_at(max(begin, end - 1))
        parts = [self.make(segment) for segment in range(first, last + 1)]
        offset = self.begin(first)
        return np.concatenate(parts)[begin - offset : end - offset]

    def _chunks(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield (first sample's position, words, buckets) for some samples at a time."""
        for first in range(0, self.num_samples, CHUNK):
            if self.stop.is_set():
                raise OrderStopped
            words = epoch_words(self.seed, self.epoch, min(CHUNK, self.num_samples - first), first)
            yield first, words, self.bucket_of(first, words)


class OrderStopped(Exception):
    """The loader was closed while its next order was made."""


class RandomOrder(EpochOrder):
    """Sorts the samples by `epoch_words`, because NumPy guarantees its raw words, but not the result of `permutation`.

    Words with the same first bits share a bucket.
    """

    def __init__(self, seed: int, epoch: int, num_samples: int, samples: np.ndarray | None, stop: Event) -> None:
        super().__init__(seed, epoch, num_samples, samples, stop)
        bits = (BUCKETS_PER_SEGMENT * num_samples // SEGMENT).bit_length() if num_samples > SEGMENT else 0
        self.num_buckets, self._shift = 1 << bits, np.uint64(64 - bits)

    def bucket_of(self, first: int, words: np.ndarray) -> np.ndarray:
        return np.zeros(len(words), np.int64) if self.num_buckets == 1 else (words >> self._shift).view(np.int64)

    def sort_keys(self, buckets: np.ndarray, words: np.ndarray) -> np.ndarray:
        return words


class BlockOrder(EpochOrder):
    """Sorts the samples by their page's block, then by their words. The blocks are the buckets.

    Attributes:
        block_of_page: int64 (P,).
    """

    def __init__(
        self,
        seed: int,
        epoch: int,
        num_samples: int,
        samples: np.ndarray | None,
        stop: Event,
        pages: Pages,
        block_mib: int,
    ) -> None:
        super().__init__(seed, epoch, num_samples, samples, stop)
        self.pages, self.block_of_page = pages, block_of_page(pages, num_samples, seed, epoch, block_mib)
        self.num_buckets = int(self.block_of_page.max()) + 1

    def bucket_of(self, first: int, words: np.ndarray) -> np.ndarray:
        # a sample that `data.sampling` draws again has a higher number
        ids = self.take(np.arange(first, first + len(words))) % len(self.pages.betons)
        buckets: np.ndarray = self.block_of_page[self.pages.of_samples(ids)]
        return buckets

    def sort_keys(self, buckets: np.ndarray, words: np.ndarray) -> np.ndarray:
        return (buckets.view(np.uint64) << SAMPLE_BITS) | (words >> (np.uint64(64) - SAMPLE_BITS))


class SampleOrder:
    """The sample order for given files, samples and settings. It is a pure function of (seed, epoch).

    Raises:
        UserError: the order or the sampling is unknown, sampling by class is requested for multi-label images, or
            `block_mib` is less than 1.
    """

    def __init__(
        self, betons: BetonSet, subset: np.ndarray | None, seed: int, order: str, block_mib: int, sampling: str = NONE
    ) -> None:
        """Set up the order.

        Args:
            subset: int64 (n,), ids of the samples to use. None uses all.
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
        self._epochs: dict[int, EpochOrder] = {}  # the last two
        self._requested: tuple[tuple[int, int, int], Future[np.ndarray]] | None = None
        self._stop, self._thread = Event(), ThreadPoolExecutor(1, "SampleOrder")
        self.name = f"{order} of {block_mib} MiB" if order == BLOCKS else order
        self.name += "" if sampling == NONE else f", {sampling} sampling"

    def __len__(self) -> int:
        return self.num_samples

    def of_epoch(self, epoch: int) -> EpochOrder:
        """Return an epoch's order.

        When `data.sampling` draws sample i again, it appears as i + r * N, where the files have N samples.
        """
        if epoch in self._epochs:
            return self._epochs[epoch]
        samples = self.subset
        if self.sampling != NONE:
            labels = self.betons.labels if samples is None else self.betons.labels[samples]
            again, drawn = np.divmod(draw_by_class(labels, self.sampling, self.seed, epoch), len(labels))
            samples = (drawn if samples is None else samples[drawn]) + again * len(self.betons)
        arguments = self.seed, epoch, self.num_samples, samples, self._stop
        order = RandomOrder(*arguments) if self.pages is None else BlockOrder(*arguments, self.pages, self.block_mib)
        self._epochs = {e: made for e, made in self._epochs.items() if e == epoch - 1} | {epoch: order}
        return order

    def batches(self, epoch: int, layout: BatchLayout, start_step: int = 0) -> Iterator[np.ndarray]:
        """Yield the samples for each of this rank's micro-batches, int64 (micro_batch,), from step `start_step` on.

        While a segment is used, a thread makes the next one. At an epoch's end, this is the next epoch's first segment.
        """
        order, rest = self.of_epoch(epoch), np.empty(0, np.int64)
        first = order.segment_at(start_step * layout.batch_size)
        for segment in range(first, len(order.segments)):
            part = self._request(epoch, segment, layout, start_step).result()
            is_last = segment + 1 == len(order.segments)
            self._request(*((epoch + 1, 0) if is_last else (epoch, segment + 1)), layout, 0 if is_last else start_step)
            rest = np.concatenate([rest, part])
            whole = len(rest) - len(rest) % layout.micro_batch
            yield from rest[:whole].reshape(-1, layout.micro_batch)
            rest = rest[whole:]

    def _request(self, epoch: int, segment: int, layout: BatchLayout, start_step: int) -> "Future[np.ndarray]":
        """Let the thread make this rank's samples in a segment, unless this was the last request."""
        request = epoch, segment, start_step
        if self._requested is None or self._requested[0] != request:
            if self._requested is not None:
                self._requested[1].cancel()
            self._requested = request, self._thread.submit(self._make, epoch, segment, layout, start_step)
        return self._requested[1]

    def _make(self, epoch: int, segment: int, layout: BatchLayout, start_step: int) -> np.ndarray:
        order = self.of_epoch(epoch)
        return layout.rank_order(order.make(segment), start_step, order.begin(segment))

    def read_ahead(self, epoch: int, layout: BatchLayout, start_step: int = 0) -> ReadAhead | None:
        """Request the pages with this rank's samples while `batches` is used. Returns None in random order."""
        order = self.of_epoch(epoch)
        if not isinstance(order, BlockOrder):
            return None
        return ReadAhead(
            layout.count_before(order.bucket_begins, start_step),
            lambda block: order.pages.spans(np.flatnonzero(order.block_of_page == block)),
            release=not fits_page_cache(self.betons.file_size, memory_bytes()[1]),
        )

    def close(self) -> None:
        """End the thread. Closing twice is harmless."""
        self._stop.set()
        self._thread.shutdown(cancel_futures=True)


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
