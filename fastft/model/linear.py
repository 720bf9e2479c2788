"""The tower's linear layers, with fewer passes over memory than autograd needs for the plain formula.

Shapes: M rows (images times tokens), D width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastft.model.fused import biased_silu

QUICK_GELU_SLOPE = 1.702  # OpenAI's CLIP


class _ScaledLinear(torch.autograd.Function):
    """alpha x W^T + bias. The matrix products apply alpha, forward and backward, so no pass over memory is added."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, alpha: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.alpha = alpha
        return torch.addmm(bias, x, weight.t(), alpha=alpha)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias, _ = ctx.needs_input_grad
        return (
            _scaled_product(grad, weight, ctx.alpha) if for_x else None,
            _scaled_product(grad.t(), x, ctx.alpha) if for_weight else None,
            grad.sum(0) if for_bias else None,
            None,
        )


def _scaled_product(a: Tensor, b: Tensor, alpha: float) -> Tensor:
    """Return alpha a b. With beta=0 the first argument of addmm is not read."""
    return torch.addmm(a.new_empty(1), a, b, beta=0, alpha=alpha)


def scaled_linear(x: Tensor, weight: Tensor, bias: Tensor, alpha: float) -> Tensor:
    """Return alpha x W^T + bias for rows (M, in). All tensors have the same dtype."""
    if torch.is_grad_enabled():
        return _ScaledLinear.apply(x, weight, bias, alpha)
    # a plain operator, which exporters to other formats support
    return torch.addmm(bias, x, weight.t(), alpha=alpha)


def quick_gelu_mlp(
    x: Tensor, w_in: Tensor, b_in: Tensor, w_out: Tensor, b_out: Tensor, *, fused: bool = False
) -> Tensor:
    """Apply linear(quick_gelu(linear(x))) to tokens (B, N, D).

    quick_gelu(h) = h sigmoid(a h) = silu(a h) / a, with a = 1.702. The first product is scaled by a and the second by
    1 / a, so the activation is one library kernel in each direction.

    fused: one kernel computes the gradients for both the activation and b_in (`fastft.model.fused`).
    """
    x, w_in, b_in, w_out, b_out = autocast_inputs(x, w_in, b_in, w_out, b_out)
    rows = x.reshape(-1, x.shape[-1])
    bias = b_in * QUICK_GELU_SLOPE
    scaled = scaled_linear(rows, w_in, bias.detach() if fused else bias, QUICK_GELU_SLOPE)
    hidden = biased_silu(scaled, bias) if fused else F.silu(scaled)
    return scaled_linear(hidden, w_out, b_out, 1 / QUICK_GELU_SLOPE).view(x.shape)


class _SplitProjection(torch.autograd.Function):
    """Queries, keys and values (M, D) from one product, whose gradients are never concatenated to (M, 3 D).

    Attention kernels return three separate gradients. Three accumulating products read them where they are.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, weight)
        return torch.addmm(bias, x, weight.t()).chunk(3, dim=1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        grad_x = None
        if for_x:
            (first, *rest), (w_first, *w_rest) = grads, weight.chunk(3)
            grad_x = first @ w_first
            for grad, w in zip(rest, w_rest, strict=True):
                grad_x.addmm_(grad, w)
        return (
            grad_x,
            torch.cat([grad.t() @ x for grad in grads]) if for_weight else None,
            torch.cat([grad.sum(0) for grad in grads]) if for_bias else None,
        )


def split_projection(x_BND: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the tokens' queries, keys and values, each (B, N, D), from packed weights (3 D, D) and bias (3 D)."""
    x_BND, weight, bias = autocast_inputs(x_BND, weight, bias)
    if torch.is_grad_enabled():
        parts = _SplitProjection.apply(x_BND.reshape(-1, x_BND.shape[-1]), weight, bias)
        q, k, v = (part.view(x_BND.shape) for part in parts)
    else:
        q, k, v = F.linear(x_BND, weight, bias).chunk(3, dim=-1)
    return q, k, v


class _NormBranch(torch.autograd.Function):
    """Return x, and LayerNorm(x) rounded to half precision.

    The backward pass reads the rounded tokens, so that neither x nor an fp32 gradient for the norm is kept. Both
    directions use PyTorch's vectorised LayerNorm kernels, which sum in fp32.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor, shift: Tensor, eps: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        # Not x.to(dtype): Inductor recomputes a cast in the backward pass, and would keep x for it
        half = torch.empty_like(x, dtype=dtype).copy_(x)
        gain, shift = gain.to(dtype), shift.to(dtype)
        with torch.autocast(x.device.type, enabled=False):  # autocast would compute and return fp32
            norm, mean, rstd = torch.native_layer_norm(half, x.shape[-1:], gain, shift, eps)
        ctx.save_for_backward(half, mean, rstd, gain, shift)
        return x, norm

    @staticmethod
    def backward(ctx: Any, grad_x: Tensor, grad_norm: Tensor) -> tuple[Tensor | None, ...]:
        half, mean, rstd, gain, shift = ctx.saved_tensors
        grad, grad_gain, grad_shift = torch.ops.aten.native_layer_norm_backward(
            grad_norm, half, half.shape[-1:], mean, rstd, gain, shift, [True, True, True]
        )
        return grad_x + grad, grad_gain, grad_shift, None, None


# On a CPU the kernel would add up the gradients for gain and shift in half precision
NORM_BRANCH_DEVICES = ["cuda"]


def norm_branch(x: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """Return tokens (B, N, D) for the residual sum, and normalised tokens for the branch that is added to it.

    When fp32 tokens are trained under autocast on a GPU, the norm's gradients stay in half precision.
    """
    if x.requires_grad and x.device.type in NORM_BRANCH_DEVICES and autocast_is_on(x):
        dtype = torch.get_autocast_dtype(x.device.type)
        return _NormBranch.apply(x, norm.weight, norm.bias, norm.eps, dtype)
    return x, norm(x)


def autocast_is_on(x: Tensor) -> bool:
    """Return True if autocast is on for x's device. False for meta tensors, for which torch does not answer."""
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


def autocast_inputs(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors in autocast's dtype if autocast is on, as `F.linear` would use them, otherwise unchanged."""
    device_type = tensors[0].device.type
    if not autocast_is_on(tensors[0]):
        return tensors
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(tensor.to(dtype) for tensor in tensors)
