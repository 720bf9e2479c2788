"""Which sample is trained on when: one global order per epoch, cut the same way at any world size."""

from dataclasses import dataclass

import numpy as np

from beton_tools.errors import UserError
from fastft.augment.rng import epoch_words


def epoch_order(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of 0..num_samples-1, int64, a pure function of its arguments.

    Sorts the raw words of `epoch_words`: NumPy guarantees that stream, but not the one of `permutation`.
    """
    return np.argsort(epoch_words(seed, epoch, num_samples), kind="stable").astype(np.int64, copy=False)


@dataclass(frozen=True)
class BatchLayout:
    """How an epoch is cut into optimiser steps, ranks and micro-batches.

    Step t owns `order[t * batch_size : (t + 1) * batch_size]`, whatever the world size; what is left over at
    the end of an epoch is dropped, as in the reference. Rank r takes the r-th contiguous part of every step.
    Raises UserError if ranks and micro-batches do not divide the batch, or if there is not one whole batch.
    """

    num_samples: int
    batch_size: int
    micro_batch: int
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise UserError(f"rank {self.rank} is not in a world of {self.world_size}")
        at_once = self.world_size * self.micro_batch
        if self.batch_size < 1 or at_once < 1 or self.batch_size % at_once:
            raise UserError(
                f"batch size {self.batch_size} is not a multiple of {self.world_size} processes x "
                f"micro-batch {self.micro_batch}; change one of the three"
            )
        if self.num_samples < self.batch_size:
            raise UserError(
                f"{self.num_samples} samples do not fill one batch of {self.batch_size}; use a smaller batch"
            )

    @property
    def steps(self) -> int:
        return self.num_samples // self.batch_size

    @property
    def rank_batch(self) -> int:
        return self.batch_size // self.world_size

    def rank_order(self, order: np.ndarray, start_step: int = 0) -> np.ndarray:
        """This rank's samples from `start_step` on: its micro-batches, one after another."""
        if not 0 <= start_step <= self.steps:
            raise UserError(f"cannot start at step {start_step}: an epoch has {self.steps} steps")
        by_rank = order[: self.steps * self.batch_size].reshape(self.steps, self.world_size, self.rank_batch)
        return by_rank[start_step:, self.rank].reshape(-1)

    def locate(self, index: int, start_step: int = 0) -> tuple[int, int]:
        """(step, position of its first image in that step's global batch) of the index-th micro-batch."""
        step, place = divmod(index * self.micro_batch, self.rank_batch)
        return start_step + step, self.rank * self.rank_batch + place


def eval_share(indices: np.ndarray, rank: int, world_size: int) -> tuple[np.ndarray, int]:
    """(this rank's contiguous share of `indices`, position of its first): none twice, none left out."""
    bounds = np.linspace(0, len(indices), world_size + 1).astype(np.int64)
    return indices[bounds[rank] : bounds[rank + 1]], int(bounds[rank])
