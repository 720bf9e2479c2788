"""Batches for training and evaluation out of a `.beton` file, through FFCV's engine."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from fastft.augment import AugmentPolicy


@dataclass(frozen=True)
class Batch:
    """One micro-batch. `images` is a view of a reused buffer: valid until the next batch is asked for."""

    images: torch.Tensor  # (b, 3, S, S) channels-last, normalised, on the loader's device, in its dtype
    labels: torch.Tensor  # (b,) int64 on that device
    ids: np.ndarray  # (b,) int64, dataset indices
    step: int  # optimiser step within the epoch (evaluation: index of the batch)
    first_position: int  # position of images[0] in the global batch of that step (evaluation: in the whole set)


class TrainLoader:
    """Ordered, augmented micro-batches of this rank; the same images at any world size or worker count."""

    num_samples: int
    num_classes: int
    steps_per_epoch: int
    wait_seconds: float  # how long the consumer has waited for batches; set it to 0 to start anew

    def __init__(
        self,
        path: str | Path,
        policy: "AugmentPolicy",
        *,
        size: int,
        seed: int,
        batch_size: int,
        micro_batch: int,
        rank: int = 0,
        world_size: int = 1,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        device: torch.device | str,
        dtype: torch.dtype,
        workers: int | None = None,
        batches_ahead: int = 2,
        subset: np.ndarray | None = None,
    ) -> None: ...

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The micro-batches of steps start_step, start_step + 1, ... in order."""
        raise NotImplementedError

    def close(self) -> None:
        """End the running epoch and its thread."""

    def __enter__(self) -> "TrainLoader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class EvalLoader:
    """Every sample exactly once at any world size: rank r gets a contiguous share, its last batch is smaller."""

    num_samples: int  # of the whole set; this rank's share is counted by iterating
    num_classes: int
    wait_seconds: float

    def __init__(
        self,
        path: str | Path,
        *,
        size: int,
        crop_pct: float = 1.0,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        device: torch.device | str,
        dtype: torch.dtype,
        workers: int | None = None,
        batches_ahead: int = 2,
        indices: np.ndarray | None = None,
    ) -> None: ...

    def __iter__(self) -> Iterator[Batch]:
        raise NotImplementedError

    def close(self) -> None:
        """End the running pass and its thread."""
