"""Exponential moving average of the weights, updated after every optimiser step, in fp32."""

import copy

import torch
from torch import Tensor, nn


def decay_for_batch(decay: float, batch_size: int, reference_batch: int) -> float:
    """The decay that keeps the horizon in images: one step of `reference_batch` equals reference/batch steps of `batch_size`.

    0.9998 at batch 2048 has a horizon of 5000 steps, 8 ImageNet epochs; it is 0.99990 at 1024.
    """
    return decay ** (batch_size / reference_batch)


class Ema:
    """Holds `module`, a copy of the model with averaged weights; frozen parameters are shared, not copied.

    ema <- ema + (1 - decay) * (model - ema), no warm-up and no bias correction (timm's ModelEma, which the reference uses).
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        # frozen parameters never change: the copy points at the same tensors
        shared = {id(p): p for p in model.parameters() if not p.requires_grad}
        self.module = copy.deepcopy(model, memo=dict(shared)).requires_grad_(False).eval()
        names = [name for name, p in model.named_parameters() if p.requires_grad]
        source, target = dict(model.named_parameters()), dict(self.module.named_parameters())
        self._source: list[Tensor] = [source[name] for name in names]
        self._target: list[Tensor] = [target[name] for name in names]

    @torch.no_grad()
    def update(self) -> None:
        torch._foreach_lerp_(self._target, self._source, 1 - self.decay)
