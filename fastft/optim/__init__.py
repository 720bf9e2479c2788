"""Layer-wise parameter groups, fused AdamW, the schedule, EMA and the half-precision copy."""

import torch

from fastft.optim.ema import Ema, decay_for_batch
from fastft.optim.groups import Group, layer_groups, optimizer_groups
from fastft.optim.half_copy import HalfCopy
from fastft.optim.schedule import WarmupCosine, set_lr

__all__ = [
    "Ema", "Group", "HalfCopy", "WarmupCosine", "build_adamw", "decay_for_batch", "layer_groups", "optimizer_groups",
    "set_lr",
]  # fmt: skip


def build_adamw(groups: list[dict[str, object]], *, betas: tuple[float, float], eps: float) -> torch.optim.AdamW:
    """Build fused AdamW over `optimizer_groups`. The learning rate is set at every step by `set_lr`."""
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=eps, fused=True)
