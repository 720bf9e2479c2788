"""The order of samples: one global order per epoch, divided in the same way at any world size."""

from dataclasses import dataclass

import numpy as np

from beton_tools.base.errors import UserError
from fastft.augment.rng import epoch_words
from fastft.recipe import count_steps


def epoch_order(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of 0..num_samples-1, int64, a pure function of its arguments.

    Sorts the raw words of `epoch_words`: NumPy guarantees that stream, but not the one of `permutation`.
    """
    return np.argsort(epoch_words(seed, epoch, num_samples), kind="stable").astype(np.int64, copy=False)


@dataclass(frozen=True)
class Shard:
    """Which part of the data one process of a distributed run reads.

    Raises:
        UserError: the rank is not in 0..world_size-1.
    """

    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise UserError(
                f"rank {self.rank} with world size {self.world_size}: give a rank from 0 to the world size minus 1"
            )


@dataclass(frozen=True)
class BatchLayout:
    """How an epoch is divided into optimiser steps, ranks and micro-batches.

    Step t has the samples `order[t * batch_size : (t + 1) * batch_size]` at any world size. Samples at the end of an epoch
    that do not fill a batch are dropped, as in the reference. Rank r reads the r-th contiguous part of every step.

    Raises:
        UserError: the batch size is not divisible by world_size * micro_batch, or there are fewer samples than one batch.
    """

    num_samples: int
    batch_size: int
    micro_batch: int
    shard: Shard = Shard()

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"batch size is {self.batch_size}: it must be 1 or more")
        at_once = self.shard.world_size * self.micro_batch
        if at_once < 1 or self.batch_size % at_once:
            raise UserError(
                f"batch size {self.batch_size} is not a multiple of {self.shard.world_size} processes x "
                f"micro-batch {self.micro_batch}; change one of the three"
            )
        count_steps(self.num_samples, self.batch_size)

    @property
    def steps(self) -> int:
        return count_steps(self.num_samples, self.batch_size)

    @property
    def rank_batch(self) -> int:
        return self.batch_size // self.shard.world_size

    def rank_order(self, order: np.ndarray, start_step: int = 0) -> np.ndarray:
        """The samples of this rank from `start_step` on: its micro-batches, one after another.

        Raises:
            UserError: an epoch has fewer steps.
        """
        if not 0 <= start_step <= self.steps:
            raise UserError(f"cannot start at step {start_step}: an epoch has {self.steps} steps")
        whole_steps = order[: self.steps * self.batch_size]
        by_rank = whole_steps.reshape(self.steps, self.shard.world_size, self.rank_batch)
        return by_rank[start_step:, self.shard.rank].reshape(-1)

    def locate(self, index: int, start_step: int = 0) -> tuple[int, int]:
        """(step, position of its first image in the global batch of that step) of the micro-batch number `index`."""
        step, place = divmod(index * self.micro_batch, self.rank_batch)
        return start_step + step, self.shard.rank * self.rank_batch + place


def eval_share(indices: np.ndarray, shard: Shard) -> tuple[np.ndarray, int]:
    """(the contiguous part of `indices` that this rank evaluates, position of its first): each index is in one part."""
    bounds = np.linspace(0, len(indices), shard.world_size + 1).astype(np.int64)
    return indices[bounds[shard.rank] : bounds[shard.rank + 1]], int(bounds[shard.rank])
