"""The operations of ``fastft.model.fused`` on a CPU, by PyTorch's formulas, in the dtype of their inputs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def add_norm(x: Tensor, branch: Tensor, gain: Tensor, shift: Tensor, eps: float) -> tuple[Tensor, ...]:
    total = x + branch
    normed, mean, scale = torch.native_layer_norm(total, total.shape[-1:], gain, shift, eps)
    return total, normed, torch.cat([mean.flatten(0, -2), scale.flatten(0, -2)], 1)


def add_norm_backward(
    grad_total: Tensor, grad_normed: Tensor, total: Tensor, gain: Tensor, statistics: Tensor
) -> tuple[Tensor, ...]:
    """The sums of even and of odd rows."""
    (mean, scale), width = statistics.unsqueeze(-1).unbind(1), total.shape[-1]
    rows, direct = grad_normed.reshape(-1, width), grad_total.reshape(-1, width)
    normal, scaled = (total.reshape(-1, width) - mean) * scale, rows * gain
    slope = scaled - scaled.mean(1, True) - normal * (scaled * normal).mean(1, True)
    grad = direct + (scale * slope).to(total.dtype)
    terms = torch.stack([rows * normal, rows.to(normal.dtype), grad.to(normal.dtype)])
    return grad.view(total.shape), torch.stack([terms[:, ::2].sum(1), terms[:, 1::2].sum(1)])


def silu_backward(grad: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    found = torch.ops.aten.silu_backward(grad, x)
    return found, torch.stack([found[::2].sum(0), found[1::2].sum(0)])


@contextmanager
def cpu_operations(**replaced: Callable[..., tuple[Tensor, ...]]) -> Iterator[None]:
    """Within, `torch.ops.fastft` runs on CPU tensors. replaced: other implementations by operation."""
    library = torch.library.Library("fastft", "IMPL")
    for function in (add_norm, add_norm_backward, silu_backward):
        library.impl(function.__name__, replaced.get(function.__name__, function), "CPU")
    try:
        yield
    finally:
        library._destroy()
