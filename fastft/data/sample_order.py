"""The order of the samples in every epoch: `data.order`, over all files or some of their samples."""

import numpy as np

from beton_tools.base.errors import UserError
from beton_tools.read.beton_set import BetonSet
from fastft.data.block_order import Pages, block_of_page, block_order
from fastft.data.order import epoch_order
from fastft.data.read_ahead import ReadAhead, read_exactly
from fastft.machine.page_cache import fits_page_cache, memory_bytes
from fastft.recipe.constants import BLOCKS, ORDERS


class SampleOrder:
    """A pure function of (seed, epoch) for given files, samples and settings.

    Raises:
        UserError: no such order, or a block has no size.
    """

    def __init__(
        self, betons: BetonSet, subset: np.ndarray | None, seed: int, order: str, block_mib: int
    ) -> None:
        """subset: int64 (n,), ids of the samples to use; None for all."""
        if order not in ORDERS:
            raise UserError(f"order is {order!r}: give one of {', '.join(ORDERS)}")
        if block_mib < 1:
            raise UserError(f"block_mib is {block_mib}: give 1 or more")
        self.betons, self.subset, self.seed, self.block_mib = betons, subset, seed, block_mib
        self.num_samples = len(betons) if subset is None else len(subset)
        self.pages = Pages.of(betons) if order == BLOCKS else None
        if self.pages is not None:
            read_exactly(betons.descriptors.tolist())
        self.name = f"{order} of {block_mib} MiB" if order == BLOCKS else order

    def __len__(self) -> int:
        return self.num_samples

    def of_epoch(self, epoch: int) -> np.ndarray:
        """The samples, int64 (n,)."""
        if self.pages is not None:
            samples = np.arange(self.num_samples, dtype=np.int64) if self.subset is None else self.subset
            return block_order(self.pages, samples, self.seed, epoch, self.block_mib)
        order = epoch_order(self.num_samples, self.seed, epoch)
        return order if self.subset is None else self.subset[order]

    def read_ahead(self, epoch: int, samples: np.ndarray) -> ReadAhead | None:
        """Requests the pages of `samples`, a part of the epoch in its order; None in random order."""
        pages = self.pages
        if pages is None or len(samples) == 0:
            return None
        blocks = block_of_page(pages, self.num_samples, self.seed, epoch, self.block_mib)
        return ReadAhead(
            blocks[pages.of_sample[samples]],
            lambda block: pages.spans(np.flatnonzero(blocks == block)),
            release=not fits_page_cache(self.betons.file_size, memory_bytes()[1]),
        )
