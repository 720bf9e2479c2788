"""Compute a residual sum with its LayerNorm, and SiLU, in fewer passes over memory: half-precision weights on CUDA.

Three operations, `torch.ops.fastft.add_norm`, `add_norm_backward` and `silu_backward`, have CUDA kernels (`fused_kernels`).
On fake tensors, which are used for counting, they only give shapes. The layer before an operation has a bias, which is part of
the operation's input. The functions here compute this bias's gradient, because their kernels have its terms at hand, and the
layer gets the bias without gradient.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Each block of threads adds up its own rows, so the sums depend on the number of blocks.
BLOCKS_PER_MULTIPROCESSOR = 4
BLOCKS = 80 * BLOCKS_PER_MULTIPROCESSOR  # a V100's number, for counts on fake tensors


def _blocks(like: Tensor) -> int:
    if not like.is_cuda:
        return BLOCKS
    return BLOCKS_PER_MULTIPROCESSOR * torch.cuda.get_device_properties(like.device).multi_processor_count


def _floats(like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape, dtype=torch.float32)


# name -> (argument and result types, a function that allocates the results)
OPERATIONS: dict[str, tuple[str, Callable[..., tuple[Tensor, ...]]]] = {
    # x + branch, its LayerNorm, and each row's mean and 1 / standard deviation (R, 2)
    "add_norm": (
        "(Tensor x, Tensor branch, Tensor gain, Tensor shift, float eps) -> (Tensor, Tensor, Tensor)",
        lambda x, *_: (torch.empty_like(x), torch.empty_like(x), _floats(x, x.numel() // x.shape[-1], 2)),
    ),
    # gradient with respect to the sum, and by block those for gain, shift and a bias that the sum contains (blocks, 3, D)
    "add_norm_backward": (
        "(Tensor grad_total, Tensor grad_normed, Tensor total, Tensor gain, Tensor statistics) -> (Tensor, Tensor)",
        lambda grad, *_: (torch.empty_like(grad), _floats(grad, _blocks(grad), 3, grad.shape[-1])),
    ),
    # gradient with respect to x, and by block the one for a bias that x contains (blocks, D)
    "silu_backward": (
        "(Tensor grad, Tensor x) -> (Tensor, Tensor)",
        lambda grad, x: (torch.empty_like(x), _floats(x, _blocks(x), x.shape[-1])),
    ),
}


def _run(name: str, *arguments: Any) -> tuple[Tensor, ...]:
    from fastft.model.fused_kernels import launch  # numba-cuda, which only machines with a GPU have

    outputs = OPERATIONS[name][1](*arguments)
    launch(name, arguments, outputs)
    return outputs


LIBRARY = torch.library.Library("fastft", "DEF")
for _name, (_types, _memory) in OPERATIONS.items():
    LIBRARY.define(_name + _types)
    LIBRARY.impl(_name, _memory, "Meta")
    LIBRARY.impl(_name, partial(_run, _name), "CUDA")


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, branch: Tensor, bias: Tensor, gain: Tensor, shift: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        total, normed, statistics = torch.ops.fastft.add_norm(x, branch, gain, shift, eps)
        ctx.save_for_backward(total, gain, statistics)
        return total, normed

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, grad_normed: Tensor) -> tuple[Tensor | None, ...]:
        total, gain, statistics = ctx.saved_tensors
        grad, sums = torch.ops.fastft.add_norm_backward(
            grad_total.contiguous(), grad_normed.contiguous(), total, gain, statistics
        )
        for_gain, for_shift, for_bias = sums.sum(0).to(gain.dtype).unbind()
        return grad, grad, for_bias, for_gain, for_shift, None


def add_norm(x: Tensor, branch: Tensor, bias: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """Return x + branch and its LayerNorm.

    The tokens are contiguous (B, N, D), in the dtype of the norm's weights, fp16 or bf16.

    bias: (D,), already added to the branch. It receives its gradient here.
    """
    return _AddNorm.apply(x, branch, bias, norm.weight, norm.bias, norm.eps)


class _BiasedSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.silu(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        (x,) = ctx.saved_tensors
        grad, sums = torch.ops.fastft.silu_backward(grad.contiguous(), x)
        return grad, sums.sum(0).to(x.dtype)


def biased_silu(x: Tensor, bias: Tensor) -> Tensor:
    """Return silu(x) for contiguous rows (R, D), fp16 or bf16. bias: (D,), already added to x. It receives its gradient here."""
    return _BiasedSilu.apply(x, bias)
