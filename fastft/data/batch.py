"""Output and batches of a loader."""

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Output:
    """The images that a loader delivers: (b, 3, size, size), normalised, in channels-last memory.

    On a GPU (`device="cuda"`) augmentation runs there too.
    """

    size: int
    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32  # float32, float16 or bfloat16


@dataclass(frozen=True)
class Batch:
    """One micro-batch. `images` is a view of a reused buffer, valid until the next batch is requested."""

    images: torch.Tensor  # (b, 3, S, S), as `Output` says
    labels: torch.Tensor  # (b,) int64 on the same device
    ids: np.ndarray  # (b,) int64, indices of the samples: in the file, or through all files
    step: int  # optimiser step within the epoch (evaluation: index of the batch)
    first_position: int  # of images[0] in the global batch of that step (evaluation: in the whole set)
