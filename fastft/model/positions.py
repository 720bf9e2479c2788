"""Position embeddings of a class token and a square grid of patches, at another grid."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def resample_positions(positions_ND: Tensor, grid: int) -> Tensor:
    """Positions (1 + grid^2, D) in fp32: bicubic, align_corners=False, the class position unchanged (as the reference).

    The positions themselves if they are of this grid.
    """
    old = math.isqrt(positions_ND.shape[0] - 1)
    if old == grid:
        return positions_ND
    patches = positions_ND[1:].float().T.reshape(1, -1, old, old)
    patches = F.interpolate(patches, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([positions_ND[:1].float(), patches.flatten(2)[0].T])
