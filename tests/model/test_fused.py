"""Hand-written gradients are those of the plain formulas."""

import pytest
import torch
from torch.nn import functional as F

from fastft.model.fused import _BatchedAttention, quick_gelu, self_attention
from tests.model.test_tower import small_arch


def plain_attention(qkv: torch.Tensor, heads: int) -> torch.Tensor:
    """The textbook formula, in the dtype given."""
    B, N, D = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    q, k, v = (part.view(B, N, heads, -1).transpose(1, 2) for part in qkv.split(D, dim=-1))
    scores = q @ k.transpose(2, 3) / (D // heads) ** 0.5
    return (scores.softmax(-1) @ v).transpose(1, 2).reshape(B, N, D)


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


def test_quick_gelu_and_its_gradient_are_the_formula() -> None:
    x = torch.linspace(-30, 30, 301, dtype=torch.float64).requires_grad_()
    torch.testing.assert_close(quick_gelu(x), x * torch.sigmoid(1.702 * x))
    assert torch.autograd.gradcheck(quick_gelu, (torch.randn(4, 5, dtype=torch.float64, requires_grad=True),))


@pytest.mark.parametrize(("batch", "tokens", "heads", "width"), [(2, 3, 2, 4), (1, 4, 1, 2), (2, 1, 2, 4)])
def test_batched_attention_and_its_gradient_are_the_formula(batch, tokens, heads, width) -> None:
    qkv = torch.randn(batch, tokens, 3 * width, dtype=torch.float64, requires_grad=True)
    before = qkv.detach().clone()
    torch.testing.assert_close(_BatchedAttention.apply(qkv, heads), plain_attention(qkv, heads))
    assert torch.autograd.gradcheck(lambda x: _BatchedAttention.apply(x, heads), (qkv,))
    assert torch.equal(qkv, before)


def test_bf16_attention_is_within_bf16_rounding_of_the_exact_result() -> None:
    qkv = torch.randn(2, 50, 3 * 128).bfloat16().requires_grad_()
    exact = qkv.detach().double().requires_grad_()
    got, want = self_attention(qkv, 2), plain_attention(exact, 2)
    gradient = torch.randn_like(want)
    got.backward(gradient.bfloat16())
    want.backward(gradient)
    assert relative_error(got, want) < 2**-7
    assert relative_error(qkv.grad, exact.grad) < 2**-7


def test_a_bias_reaches_the_scores_in_bf16_too() -> None:
    qkv, bias = torch.randn(1, 6, 3 * 8), torch.zeros(2, 6, 6)
    bias[:, :, 3] = 100.0  # everyone looks at token 3
    want = qkv[0, 3, 16:].expand(6, 8)
    torch.testing.assert_close(self_attention(qkv, 2, bias)[0], want)
    torch.testing.assert_close(self_attention(qkv.bfloat16(), 2, bias.bfloat16())[0], want.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_curve_is_that_of_plain_formulas(dtype: torch.dtype, monkeypatch) -> None:
    """Twelve steps of the same small tower, with the kernels and with textbook formulas in their place."""
    from fastft.model import build_classifier, tower

    def losses() -> torch.Tensor:
        torch.manual_seed(0)
        model = build_classifier(small_arch(), 5, freeze_conv1=False)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        images, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 5
        values = []
        for _ in range(12):
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                logits = model(images)
            loss = F.cross_entropy(logits.float(), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            values.append(loss.detach())
        return torch.stack(values)

    fast = losses()
    monkeypatch.setattr(tower, "quick_gelu", lambda x: x * torch.sigmoid(1.702 * x))
    monkeypatch.setattr(tower, "self_attention", lambda qkv, heads, bias: plain_attention(qkv, heads))
    plain = losses()
    assert plain[-1] < 0.8 * plain[0]
    torch.testing.assert_close(fast, plain, rtol=1e-4 if dtype == torch.float32 else 3e-2, atol=1e-5)


def test_the_tower_compiles_without_graph_breaks() -> None:
    """`aot_eager` traces forward and backward as Inductor would, without a C++ compiler."""
    from fastft.model import Tower

    model = Tower(small_arch())
    images = torch.randn(2, 3, 32, 32)
    want = model(images)
    got = torch.compile(model, backend="aot_eager", fullgraph=True)(images)
    torch.testing.assert_close(got, want)
    got.sum().backward()
