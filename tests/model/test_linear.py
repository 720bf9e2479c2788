"""Linear layers with gradients of their own compute the plain formulas."""

import pytest
import torch
from torch.nn import functional as F

from fastft.model import linear
from fastft.model.linear import _NormBranch, norm_branch, quick_gelu_mlp, split_projection
from fastft.model.tower import PatchEmbedding


def plain_mlp(x, w_in, b_in, w_out, b_out) -> torch.Tensor:
    hidden = F.linear(x, w_in, b_in)
    return F.linear(hidden * torch.sigmoid(1.702 * hidden), w_out, b_out)


def mlp_inputs(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    shapes = ((2, 3, 4), (6, 4), (6,), (4, 6), (4,))
    return tuple(torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes)


def test_mlp_and_its_gradients_are_the_formula():
    inputs = mlp_inputs(torch.float64)
    torch.testing.assert_close(quick_gelu_mlp(*inputs), plain_mlp(*inputs))
    assert torch.autograd.gradcheck(quick_gelu_mlp, inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_computes_in_half_precision_and_gives_fp32_gradients(dtype):
    inputs = mlp_inputs(torch.float32)
    with torch.autocast("cpu", dtype):
        out = quick_gelu_mlp(*inputs)
        q, _, _ = split_projection(inputs[0], torch.randn(12, 4), torch.zeros(12))
    out.float().sum().backward()
    assert (out.dtype, q.dtype) == (dtype, dtype)
    assert all(t.grad is not None and t.grad.dtype == torch.float32 for t in inputs)


def test_split_projection_and_its_gradients_are_those_of_one_linear_layer():
    torch.manual_seed(0)
    inputs = tuple(torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, 4), (12, 4), (12,)))
    for part, want in zip(split_projection(*inputs), F.linear(*inputs).chunk(3, -1), strict=True):
        torch.testing.assert_close(part, want)
    assert torch.autograd.gradcheck(split_projection, inputs)


def test_norm_with_its_residual_and_their_gradients_are_the_formula():
    torch.manual_seed(0)
    x, gain, shift = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((2, 3, 8), (8,), (8,)))

    def run(x, gain, shift):
        return _NormBranch.apply(x, gain, shift, 1e-5, torch.float64)

    same, normalised = run(x, gain, shift)
    assert torch.equal(same, x)
    torch.testing.assert_close(normalised, F.layer_norm(x, (8,), gain, shift, 1e-5))
    assert torch.autograd.gradcheck(run, (x, gain, shift))


def test_norm_gradients_stay_in_half_precision_on_gpus_only(monkeypatch):
    """A CPU takes the plain norm. The gradient of the tokens is within bf16 rounding of the fp32 one."""
    norm, x = torch.nn.LayerNorm(64), torch.randn(2, 9, 64, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert norm_branch(x, norm)[1].dtype == torch.float32
        monkeypatch.setattr(linear, "NORM_BRANCH_DEVICES", ["cpu"])
        assert norm_branch(x.detach(), norm)[1].dtype == torch.float32, "frozen"
        same, half = norm_branch(x, norm)
    assert half.dtype == torch.bfloat16
    (got,) = torch.autograd.grad(same.sum() + half.float().square().sum(), x)
    (want,) = torch.autograd.grad(x.sum() + norm(x).square().sum(), x)
    assert (got - want).norm() < 2**-7 * want.norm()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("patch_size", [16, 14])
def test_patch_embedding_is_the_convolution(patch_size, memory_format):
    """Tokens and the weight's gradient, also in the pixels' order within a patch."""
    torch.manual_seed(0)
    embedding = PatchEmbedding(32, patch_size).to(memory_format=memory_format)
    images = torch.randn(2, 3, 56 * 2, 56 * 2).contiguous(memory_format=memory_format)
    images = images[:, :, : 7 * patch_size, : 7 * patch_size]
    want = F.conv2d(images, embedding.weight, stride=patch_size).flatten(2).transpose(1, 2)
    got = embedding(images)
    torch.testing.assert_close(got, want)
    gradient = torch.randn_like(want)
    torch.testing.assert_close(
        *(torch.autograd.grad(out, embedding.weight, gradient)[0] for out in (got, want)), atol=1e-4, rtol=1e-5
    )
