"""Batches as (images, labels), for loops that were written for `torch.utils.data.DataLoader`."""

from collections.abc import Iterator

import torch

from fastft.data.loader import EvalLoader, TrainLoader


class AsTuples:
    """A loader whose batches are tuples: images (b, 3, S, S) and labels (b,) int64.

    copy: return tensors that stay valid after the next batch is requested. Without it the images are a view of a buffer
    that the loader reuses, which suits a loop that is done with a batch before it requests the next.
    """

    def __init__(self, loader: TrainLoader | EvalLoader, *, copy: bool = False) -> None:
        self.loader, self.copy = loader, copy

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch in self.loader:
            if self.copy:
                yield batch.images.clone(), batch.labels.clone()
            else:
                yield batch.images, batch.labels
