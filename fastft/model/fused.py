"""Two functions with gradients of their own, for fewer passes over memory than autograd makes of the plain formula.

Shapes: B images, N tokens, H heads, d width of a head, D = H d.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

QUICK_GELU_SLOPE = 1.702  # of OpenAI's CLIP


class _QuickGELU(torch.autograd.Function):
    """x sigmoid(a x) is silu(a x) / a, and its derivative that of silu at a x: two library kernels, one saved tensor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        scaled = x * QUICK_GELU_SLOPE
        ctx.save_for_backward(scaled)
        return _unscaled_silu(scaled)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (scaled,) = ctx.saved_tensors
        return torch.ops.aten.silu_backward(gradient, scaled)


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), element-wise, any shape and floating dtype."""
    if not torch.is_grad_enabled():  # plain operators too, which exporters to other formats know
        return _unscaled_silu(x * QUICK_GELU_SLOPE)
    return _QuickGELU.apply(x)


def _unscaled_silu(scaled: Tensor) -> Tensor:
    return F.silu(scaled) / QUICK_GELU_SLOPE


class _BatchedAttention(torch.autograd.Function):
    """softmax(q k^T / sqrt(d)) v by batched matrix products, from packed projections and back into packed gradients."""

    @staticmethod
    def forward(ctx: Any, qkv_BN3D: Tensor, heads: int) -> Tensor:
        B, N, D = qkv_BN3D.shape[0], qkv_BN3D.shape[1], qkv_BN3D.shape[2] // 3
        d = D // heads
        packed = (
            qkv_BN3D.view(B, N, 3, heads, d)
            .permute(2, 0, 3, 1, 4)
            .clone(memory_format=torch.contiguous_format)
        )
        q, k, v = packed.view(3, B * heads, N, d)
        q.mul_(d**-0.5)
        weights = torch.softmax(torch.bmm(q, k.transpose(1, 2)), dim=-1)
        ctx.save_for_backward(q, k, v, weights)
        return torch.bmm(weights, v).view(B, heads, N, d).transpose(1, 2).reshape(B, N, D)

    @staticmethod
    def backward(ctx: Any, gradient_BND: Tensor) -> tuple[Tensor, None]:
        q, k, v, weights = ctx.saved_tensors
        B, N, D = gradient_BND.shape
        d = q.shape[-1]
        heads = D // d
        gradient = gradient_BND.view(B, N, heads, d).transpose(1, 2).reshape(B * heads, N, d)
        g_v = torch.bmm(weights.transpose(1, 2), gradient)
        g_weights = torch.bmm(gradient, v.transpose(1, 2))
        g_scores = torch.ops.aten._softmax_backward_data(g_weights, weights, -1, weights.dtype)
        g_q = torch.bmm(g_scores, k).mul_(d**-0.5)
        g_k = torch.bmm(g_scores.transpose(1, 2), q)  # q carries the scale
        packed = gradient_BND.new_empty(B, N, 3, heads, d)
        for into, part in zip(packed.unbind(2), (g_q, g_k, g_v), strict=True):
            into.copy_(part.view(B, heads, N, d).transpose(1, 2))
        return packed.view(B, N, 3 * D), None


def self_attention(qkv_BN3D: Tensor, heads: int, bias_HNN: Tensor | None = None) -> Tensor:
    """Multi-head self-attention of packed projections (B, N, 3 D) to (B, N, D); `bias_HNN` is added to the scores.

    PyTorch's fused kernel, except for bf16 on a CPU: there its backward pass takes more than twice the time of batched
    products at 65 to 577 tokens, which round the scores to bf16 as unfused attention under autocast does.
    """
    B, N, D = qkv_BN3D.shape[0], qkv_BN3D.shape[1], qkv_BN3D.shape[2] // 3
    if bias_HNN is None and qkv_BN3D.dtype == torch.bfloat16 and qkv_BN3D.device.type == "cpu":
        return _BatchedAttention.apply(qkv_BN3D, heads)
    q, k, v = qkv_BN3D.view(B, N, 3, heads, D // heads).permute(2, 0, 3, 1, 4)
    x_BHNd = F.scaled_dot_product_attention(q, k, v, attn_mask=bias_HNN)
    return x_BHNd.transpose(1, 2).reshape(B, N, D)
