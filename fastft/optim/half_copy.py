"""A half-precision copy of a model for the forward and backward pass, as in DeepSpeed's fp16 training."""

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


class HalfCopy(Generic[Model]):
    """Holds `module`, a half-precision copy of the model, which computes the gradients for the model's fp32 weights.

    At each optimiser step, run forward and backward passes through `module`, then `move_gradients`, an optimiser step on
    the model, and `refresh`. Gradients from several backward passes add up in half precision. The reference trained
    this way (DeepSpeed's fp16).
    """

    def __init__(self, model: Model, dtype: torch.dtype):
        copies = {id(p): nn.Parameter(p.detach().to(dtype), requires_grad=p.requires_grad) for p in model.parameters()}
        # Buffers are shared, because they never change. A buffer in a module with parameters takes part in their
        # arithmetic (BEiT's key bias, Swin's mask), so it gets their dtype. Modules without parameters (rotary
        # positions) compute in fp32.
        buffers = {
            id(b): b.to(dtype) if b.is_floating_point() and any(True for _ in module.parameters()) else b
            for module in model.modules()
            for b in module.buffers(recurse=False)
        }
        self.module: Model = copy.deepcopy(model, memo={**copies, **buffers}).train()
        self._master: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        self._half: list[Tensor] = [copies[id(p)] for p in self._master]

    def move_gradients(self) -> None:
        """Cast the copy's gradients to fp32 and assign them to the model.

        The copy keeps its own until they are cleared.
        """
        halves = [half.grad for half in self._half if half.grad is not None]
        gradients = [torch.empty_like(half, dtype=torch.float32) for half in halves]
        torch._foreach_copy_(gradients, halves)  # one launch for many gradients
        casts = iter(gradients)
        for master, half in zip(self._master, self._half, strict=True):
            master.grad = None if half.grad is None else next(casts)

    @torch.no_grad()
    def refresh(self) -> None:
        """Round the model's weights into the copy."""
        torch._foreach_copy_(self._half, self._master)
