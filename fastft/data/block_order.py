"""`data.order=blocks`: an order in which every page is read from the disk once, for files larger than the memory.

The pages of all files are shuffled and divided into blocks of a fixed size; the samples of a block are shuffled together.
While a block is used, the next one is read, its pages in the order of the files. In random order almost every image of a
file that the page cache cannot hold is read at its turn, from a random place.

FFCV's QUASI_RANDOM also goes through shuffled pages, but its order depends on the batch size, and it cannot be distributed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from beton_tools.read.beton_set import BetonSet
from fastft.augment.rng import epoch_words

MIB = 1 << 20
# random bits that order the samples of a block; the number of the block is above them
SAMPLE_BITS = np.uint64(40)


class Span(NamedTuple):
    """Bytes of a file."""

    descriptor: int
    offset: int
    num_bytes: int


@dataclass(frozen=True, eq=False)
class Pages:
    """The pages of files, P of them, numbered through the files.

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
        """int64 (P,)."""
        sizes = [beton.page_size for beton in self.betons.files]
        return np.repeat(np.array(sizes, np.int64), np.diff(self.starts))

    def spans(self, pages: np.ndarray) -> Sequence[Span]:
        """Where pages (ascending numbers) are, one span for each."""
        files = np.searchsorted(self.starts, pages, side="right") - 1
        found = []
        for file, page in zip(files.tolist(), pages.tolist(), strict=True):
            beton = self.betons.files[file]
            offset = beton.data_start + (page - int(self.starts[file])) * beton.page_size
            found.append(Span(beton.descriptor, offset, beton.page_size))
        return found


def block_of_page(pages: Pages, num_samples: int, seed: int, epoch: int, block_mib: int) -> np.ndarray:
    """uint64 (P,): the block of each page in an epoch. A block has at most `block_mib` MiB, and at least one page."""
    words = epoch_words(seed, epoch, num_samples + len(pages))[num_samples:]
    shuffled = np.argsort(words, kind="stable")
    begins = np.cumsum(pages.num_bytes[shuffled]) - pages.num_bytes[shuffled]
    blocks = np.empty(len(pages), np.uint64)
    blocks[shuffled] = begins // (block_mib * MIB)
    return blocks


def block_order(pages: Pages, samples: np.ndarray, seed: int, epoch: int, block_mib: int) -> np.ndarray:
    """The samples, int64 (n,), in the order of an epoch; a pure function of its arguments.

    samples: int64 (n,), ids of the samples to use.
    """
    blocks = block_of_page(pages, len(samples), seed, epoch, block_mib)[pages.of_sample[samples]]
    words = epoch_words(seed, epoch, len(samples))
    keys = (blocks << SAMPLE_BITS) | (words >> (np.uint64(64) - SAMPLE_BITS))
    return samples[np.argsort(keys, kind="stable")]
