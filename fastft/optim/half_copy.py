"""A half-precision copy of a model for the forward and backward pass, as DeepSpeed's fp16 training has it."""

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

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
        halves = [half.grad for half in self._half if half.grad is not None]
        gradients = [torch.empty_like(half, dtype=torch.float32) for half in halves]
        torch._foreach_copy_(gradients, halves)  # one launch for many of them
        casts = iter(gradients)
        for master, half in zip(self._master, self._half, strict=True):
            master.grad = None if half.grad is None else next(casts)

    @torch.no_grad()
    def refresh(self) -> None:
        """Round the model's weights to the copy's."""
        torch._foreach_copy_(self._half, self._master)
