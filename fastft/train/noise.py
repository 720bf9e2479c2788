"""Random numbers of the stochastic layers: one row per image of the global batch, a function of seed and step only."""

import torch
from torch import Tensor

from fastft.augment.rng import step_seed


def draw_noise(columns: int, batch_size: int, seed: int, step: int, device: torch.device) -> Tensor | None:
    """Uniform numbers (batch_size, columns); None for 0 columns.

    The rows are those of the global batch, so that neither a resume nor another number of processes or micro-batches
    changes what an image gets.
    """
    if columns == 0:
        return None
    generator = torch.Generator(device).manual_seed(step_seed(seed, step))
    return torch.rand(batch_size, columns, generator=generator, device=device)
