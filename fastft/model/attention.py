"""Multi-head self-attention by one of several kernels that compute the same numbers.

Which kernel is fastest depends on the GPU, so each has a name in `ATTENTION_KERNELS`. Each takes tokens and the packed
input projection, so that it can choose how the gradients of queries, keys and values reach that projection.
Shapes: B images, N tokens, H heads, d width per head, D = H d.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastft.model.linear import autocast_is_on, split_projection

BF16_NATIVE = (8, 0)  # first compute capability with bf16 and with PyTorch's FlashAttention
# fp16 and bf16 matrix products run at full speed when their sizes are multiples of this (cuBLAS)
TENSOR_CORE_MULTIPLE = 8


def self_attention(
    x_BND: Tensor, weight: Tensor, bias: Tensor, heads: int, kernel: str = "auto", score_bias_HNN: Tensor | None = None
) -> Tensor:
    """Compute softmax(q k^T / sqrt(d) + score_bias) v for tokens (B, N, D), before the output projection.

    Args:
        weight, bias: the input projection, (3 D, D) and (3 D), as in nn.MultiheadAttention.
        kernel: one of ATTENTION_KERNELS, or 'auto'. With a score bias, 'sdpa' is always used.
    """
    if score_bias_HNN is not None:
        return _sdpa(x_BND, weight, bias, heads, score_bias_HNN)
    if kernel == "auto":
        dtype = torch.get_autocast_dtype(x_BND.device.type) if autocast_is_on(x_BND) else x_BND.dtype
        kernel = default_kernel(x_BND.device, dtype)
    return ATTENTION_KERNELS[kernel](x_BND, weight, bias, heads)


def default_kernel(device: torch.device, dtype: torch.dtype) -> str:
    """Return the kernel that 'auto' stands for.

    On a CPU in bf16 this is 'batched', because the backward pass in PyTorch's fused kernel takes more than twice the
    time at 65 to 577 tokens. On GPUs without FlashAttention (V100) in half precision it is 'efficient'. Everywhere else
    it is 'sdpa'.
    """
    if device.type == "cpu" and dtype == torch.bfloat16:
        return "batched"
    if device.type == "cuda" and dtype == torch.float16:
        return "sdpa" if torch.cuda.get_device_capability(device) >= BF16_NATIVE else "efficient"
    return "sdpa"


def prepare_for_compile() -> None:
    """Keep torch.compile from tracing `default_kernel`, which asks the CUDA driver. Call it before compiling a model.

    As a decorator it would import torch's compiler, which takes a second, even in commands that compile nothing.
    """
    torch.compiler.assume_constant_result(default_kernel)


def attention_candidates(device: torch.device) -> tuple[str, ...]:
    """List the kernels that may run on this device. A kernel that cannot run raises RuntimeError when it is called."""
    return tuple(ATTENTION_KERNELS) if device.type == "cuda" else ("sdpa", "batched")


# kernels --------------------------------------------------------------------------------------------------------------


def _sdpa(x_BND: Tensor, weight: Tensor, bias: Tensor, heads: int, score_bias_HNN: Tensor | None = None) -> Tensor:
    """PyTorch's fused kernel, whichever it prefers on this device."""
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in split_projection(x_BND, weight, bias))
    mask = None if score_bias_HNN is None else score_bias_HNN.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def _flash(x_BND: Tensor, weight: Tensor, bias: Tensor, heads: int) -> Tensor:
    """PyTorch's FlashAttention: compute capability 8.0 and later, half precision. On Hopper, 'sdpa' uses cuDNN."""
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return _sdpa(x_BND, weight, bias, heads)


def _cudnn(x_BND: Tensor, weight: Tensor, bias: Tensor, heads: int) -> Tensor:
    """cuDNN's fused kernel for Hopper and later, half precision."""
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return _sdpa(x_BND, weight, bias, heads)


def _efficient(x_BND: Tensor, weight: Tensor, bias: Tensor, heads: int) -> Tensor:
    """The memory-efficient (CUTLASS) kernel, whose backward pass writes three gradients into one packed tensor."""
    return _EfficientAttention.apply(F.linear(x_BND, weight, bias), heads)


def _batched(x_BND: Tensor, weight: Tensor, bias: Tensor, heads: int) -> Tensor:
    """Batched matrix products that keep the scores. On a GPU the tokens are padded for its tensor cores."""
    multiple = TENSOR_CORE_MULTIPLE if x_BND.device.type == "cuda" else 1
    return _BatchedAttention.apply(F.linear(x_BND, weight, bias), heads, -x_BND.shape[1] % multiple)


ATTENTION_KERNELS: dict[str, Callable[[Tensor, Tensor, Tensor, int], Tensor]] = {
    "sdpa": _sdpa,
    "flash": _flash,
    "efficient": _efficient,
    "cudnn": _cudnn,
    "batched": _batched,
}


class _EfficientAttention(torch.autograd.Function):
    """Attention for packed projections (B, N, 3 D) by PyTorch's memory-efficient kernel, with packed gradients.

    `F.scaled_dot_product_attention` runs the same kernel, but without `shared_storage_dqdkdv`. Autograd then copies the
    three gradients into one tensor.
    """

    @staticmethod
    def forward(ctx: Any, qkv_BN3D: Tensor, heads: int) -> Tensor:
        q, k, v = qkv_BN3D.unflatten(-1, (3, heads, -1)).unbind(2)
        out_BNHd, lse, seed, offset, _, _ = torch.ops.aten._efficient_attention_forward(
            q, k, v, None, None, None, None, None, 0.0, 0, compute_log_sumexp=True
        )
        ctx.save_for_backward(q, k, v, out_BNHd, lse, seed, offset)
        return out_BNHd.flatten(2)

    @staticmethod
    def backward(ctx: Any, grad_BND: Tensor) -> tuple[Tensor, None]:
        q, k, v, out_BNHd, lse, seed, offset = ctx.saved_tensors
        B, N, H, d = q.shape
        is_compiled = torch.compiler.is_compiling()
        grads = torch.ops.aten._efficient_attention_backward(
            grad_BND.reshape(q.shape), q, k, v, None, out_BNHd, None, None, N, N, lse, 0.0, seed, offset, 0, False,
            shared_storage_dqdkdv=not is_compiled,
        )  # fmt: skip
        if is_compiled:  # Inductor knows nothing of shared storage
            return torch.stack(grads[:3], 2).view(B, N, 3 * H * d), None
        # the three gradients are slices [:, :, i] of one tensor (B, N, 3, H, d), and grad_q is the first slice
        return grads[0].as_strided((B, N, 3 * H * d), (N * 3 * H * d, 3 * H * d, 1)), None


class _BatchedAttention(torch.autograd.Function):
    """Attention for packed projections (B, N, 3 D) by batched matrix products, with packed gradients.

    The scores are rounded to the projections' dtype, as in unfused attention under autocast.
    padding: how many zero tokens are added for the products. They receive no attention.
    """

    @staticmethod
    def forward(ctx: Any, qkv_BN3D: Tensor, heads: int, padding: int) -> Tensor:
        B, N, D = qkv_BN3D.shape[0], qkv_BN3D.shape[1], qkv_BN3D.shape[2] // 3
        d = D // heads
        parts = qkv_BN3D.view(B, N, 3, heads, d).permute(2, 0, 3, 1, 4)
        packed = _pad_tokens(parts, padding) if padding else parts.clone(memory_format=torch.contiguous_format)
        q, k, v = packed.view(3, B * heads, N + padding, d)
        q.mul_(d**-0.5)
        scores = torch.bmm(q, k.transpose(1, 2))
        if padding:
            scores[:, :, N:] = -torch.inf
        weights = torch.ops.aten._softmax(scores, -1, False)  # torch.softmax returns fp32 under CUDA's autocast
        ctx.save_for_backward(q, k, v, weights)
        ctx.heads = heads
        out = torch.bmm(weights, v).view(B, heads, N + padding, d)[:, :, :N]
        return out.transpose(1, 2).reshape(B, N, D)

    @staticmethod
    def backward(ctx: Any, grad_BND: Tensor) -> tuple[Tensor, None, None]:
        q, k, v, weights = ctx.saved_tensors
        B, N, D = grad_BND.shape
        padding, d = q.shape[1] - N, q.shape[2]
        grad_BHNd = grad_BND.view(B, N, ctx.heads, d).transpose(1, 2)
        grad = (_pad_tokens(grad_BHNd, padding) if padding else grad_BHNd).reshape(-1, N + padding, d)
        g_v = torch.bmm(weights.transpose(1, 2), grad)
        g_weights = torch.bmm(grad, v.transpose(1, 2))
        g_scores = torch.ops.aten._softmax_backward_data(g_weights, weights, -1, weights.dtype)
        g_q = torch.bmm(g_scores, k).mul_(d**-0.5)
        g_k = torch.bmm(g_scores.transpose(1, 2), q)  # q carries the scale
        packed = grad_BND.new_empty(B, N, 3, ctx.heads, d)
        for into, part in zip(packed.unbind(2), (g_q, g_k, g_v), strict=True):
            into.copy_(part.view(B, ctx.heads, N + padding, d)[:, :, :N].transpose(1, 2))
        return packed.view(B, N, 3 * D), None, None


def _pad_tokens(x: Tensor, padding: int) -> Tensor:
    """Append zeros along the second-last dimension."""
    return F.pad(x, (0, 0, 0, padding))
