"""Stochastic depth and patch dropout from given uniform numbers, so that a seed and a step repeat them exactly.

Shapes: B images, N tokens, D width.
"""

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Stochastic depth: keeps a sample's branch if its uniform number is below 1 - rate, scaled by 1 / (1 - rate)."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor, uniform_B: Tensor | None) -> Tensor:
        """x: (B, ...)."""
        if uniform_B is None or self.rate == 0:
            return x
        keep = 1 - self.rate
        mask_B = uniform_B < keep
        return x * (mask_B / keep).to(x.dtype).view(-1, *(1,) * (x.ndim - 1))


class PatchDropout(nn.Module):
    """Keeps the first `prefix` tokens and (1 - rate) of the patch tokens: those whose uniform numbers are largest."""

    def __init__(self, rate: float, prefix: int = 1):
        super().__init__()
        self.rate, self.prefix = rate, prefix

    def choose(self, x_BND: Tensor, uniform_BN: Tensor | None) -> Tensor | None:
        """Indices (B, kept) among the patch tokens; None where all are kept."""
        if uniform_BN is None or self.rate == 0:
            return None
        patches = x_BND.shape[1] - self.prefix
        return uniform_BN[:, :patches].topk(count_kept(patches, self.rate), dim=1).indices

    def keep(self, x_BND: Tensor, index_BK: Tensor | None) -> Tensor:
        if index_BK is None:
            return x_BND
        index = index_BK.unsqueeze(-1).expand(-1, -1, x_BND.shape[2])
        return torch.cat([x_BND[:, : self.prefix], x_BND[:, self.prefix :].gather(1, index)], dim=1)

    def forward(self, x_BND: Tensor, uniform_BN: Tensor | None) -> Tensor:
        return self.keep(x_BND, self.choose(x_BND, uniform_BN))


def count_kept(patches: int, rate: float) -> int:
    """Patch tokens that patch dropout keeps."""
    return max(1, round(patches * (1 - rate)))
