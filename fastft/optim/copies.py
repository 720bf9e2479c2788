"""Copies of a model's weights: their exponential moving average, and a half-precision copy for the forward and backward pass."""

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn


def decay_for_batch(decay: float, batch_size: int, reference_batch: int) -> float:
    """The decay that keeps the horizon in images: one step of `reference_batch` equals reference/batch steps of `batch_size`.

    0.9998 at batch 2048 has a horizon of 5000 steps, 8 ImageNet epochs; it is 0.99990 at 1024.
    """
    return decay ** (batch_size / reference_batch)


class Ema:
    """Holds `module`, a copy of the model with averaged weights; frozen parameters are shared, not copied.

    ema <- ema + (1 - decay) * (model - ema), without bias correction (timm's ModelEma, which the reference uses).
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


Model = TypeVar("Model", bound=nn.Module)


class HalfCopy(Generic[Model]):
    """Holds `module`, a copy of the model in half precision that computes the gradients of the model's fp32 weights.

    Per optimiser step: forward and backward passes of `module`, `move_gradients`, an optimiser step on the model, `refresh`.
    Gradients of several backward passes add up in half precision. The reference trained this way (DeepSpeed's fp16).
    """

    def __init__(self, model: Model, dtype: torch.dtype):
        copies = {id(p): nn.Parameter(p.detach().to(dtype), requires_grad=p.requires_grad) for p in model.parameters()}
        # shared, because they never change. Those beside parameters take part in their arithmetic (BEiT's key bias, Swin's
        # mask) and so have their dtype; modules without parameters (rotary positions) compute in fp32.
        buffers = {
            id(b): b.to(dtype) if b.is_floating_point() and any(True for _ in module.parameters()) else b
            for module in model.modules()
            for b in module.buffers(recurse=False)
        }
        self.module: Model = copy.deepcopy(model, memo={**copies, **buffers}).train()
        self._master: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        self._half: list[Tensor] = [copies[id(p)] for p in self._master]

    def move_gradients(self) -> None:
        """Cast the copy's gradients to fp32 and make them the model's; the copy keeps its own until they are cleared."""
        for master, half in zip(self._master, self._half, strict=True):
            master.grad = None if half.grad is None else half.grad.to(master.dtype)

    @torch.no_grad()
    def refresh(self) -> None:
        """Round the model's weights to the copy's."""
        torch._foreach_copy_(self._half, self._master)
