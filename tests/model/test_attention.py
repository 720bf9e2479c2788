"""Every attention kernel computes the textbook formula, forward and backward."""

from collections.abc import Iterator
from contextlib import suppress

import pytest
import torch
from torch.nn import functional as F

from fastft.model import Tower
from fastft.model.attention import (
    ATTENTION_KERNELS,
    _BatchedAttention,
    _EfficientAttention,
    attention_candidates,
    default_kernel,
    prepare_for_compile,
    self_attention,
)
from tests.model.test_tower import small_arch

CPU = torch.device("cpu")


def plain_attention(qkv: torch.Tensor, heads: int) -> torch.Tensor:
    """The textbook formula, in the dtype given."""
    B, N, D = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    q, k, v = (part.view(B, N, heads, -1).transpose(1, 2) for part in qkv.split(D, dim=-1))
    scores = q @ k.transpose(2, 3) / (D // heads) ** 0.5
    return (scores.softmax(-1) @ v).transpose(1, 2).reshape(B, N, D)


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


def inputs(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Tokens, weight and bias of the input projection: 50 tokens, 2 heads of 64."""
    torch.manual_seed(0)
    shapes = ((2, 50, 128), (384, 128), (384,))
    return [(torch.randn(shape) * 128 ** (-0.25)).to(dtype).requires_grad_() for shape in shapes]


@pytest.fixture
def efficient_on_a_cpu() -> Iterator[None]:
    """The memory-efficient kernel's operators, which PyTorch has for CUDA only, by the textbook formula."""

    def forward(q, k, v, *_, compute_log_sumexp=False, **__):
        scores = torch.einsum("bnhd,bmhd->bhnm", q, k) * q.shape[-1] ** -0.5
        out = torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v).contiguous()
        empty = torch.empty((), dtype=torch.int64)
        return out, scores.logsumexp(-1), empty, empty, q.shape[1], k.shape[1]

    def backward(grad, q, k, v, bias, out, *rest, shared_storage_dqdkdv=False, **_):
        assert shared_storage_dqdkdv
        lse, scale = rest[4], q.shape[-1] ** -0.5
        weights = (torch.einsum("bnhd,bmhd->bhnm", q, k) * scale - lse[..., None]).exp()
        g_weights = torch.einsum("bnhd,bmhd->bhnm", grad, v)
        g_scores = weights * (g_weights - (grad * out).sum(-1).transpose(1, 2)[..., None]) * scale
        # as in PyTorch's attention_backward.cu
        chunk = torch.empty(*q.shape[:2], 3, *q.shape[2:], dtype=q.dtype)
        chunk[:, :, 0] = torch.einsum("bhnm,bmhd->bnhd", g_scores, k)
        chunk[:, :, 1] = torch.einsum("bhnm,bnhd->bmhd", g_scores, q)
        chunk[:, :, 2] = torch.einsum("bhnm,bnhd->bmhd", weights, grad)
        return *chunk.unbind(2), torch.empty(())

    library = torch.library.Library("aten", "IMPL", "CPU")
    library.impl("_efficient_attention_forward", forward)
    library.impl("_efficient_attention_backward", backward)
    yield
    library._destroy()


@pytest.mark.parametrize("kernel", ["auto", "sdpa", "batched", "efficient"])
def test_every_kernel_and_its_gradients_are_the_formula(kernel, efficient_on_a_cpu):
    x, weight, bias = inputs()
    gradient = torch.randn(2, 50, 128)
    got, want = self_attention(x, weight, bias, 2, kernel), plain_attention(F.linear(x, weight, bias), 2)
    torch.testing.assert_close(got, want)
    for ours, plain in zip(
        torch.autograd.grad(got, (x, weight, bias), gradient),
        torch.autograd.grad(want, (x, weight, bias), gradient),
        strict=True,
    ):
        assert relative_error(ours, plain) < 1e-5


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize(
    ("batch", "tokens", "heads", "width"), [(2, 3, 2, 4), (1, 4, 1, 2), (2, 1, 2, 4), (1, 1, 1, 2)]
)
def test_batched_attention_and_its_gradient_are_the_formula(batch, tokens, heads, width, padding):
    qkv = torch.randn(batch, tokens, 3 * width, dtype=torch.float64, requires_grad=True)
    before = qkv.detach().clone()
    torch.testing.assert_close(_BatchedAttention.apply(qkv, heads, padding), plain_attention(qkv, heads))
    assert torch.autograd.gradcheck(lambda x: _BatchedAttention.apply(x, heads, padding), (qkv,))
    assert torch.equal(qkv, before)


def test_efficient_attention_returns_the_kernels_packed_gradient_uncopied(efficient_on_a_cpu):
    qkv = torch.randn(2, 5, 3 * 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: _EfficientAttention.apply(x, 2), (qkv,))
    out = _EfficientAttention.apply(qkv, 2)
    gradient = out.grad_fn.apply(torch.ones_like(out))
    gradient = gradient[0] if isinstance(gradient, tuple) else gradient
    assert gradient.shape == qkv.shape and gradient.is_contiguous()
    assert gradient.untyped_storage().nbytes() == gradient.numel() * 8


@pytest.fixture
def softmax_of_cuda_autocast() -> Iterator[None]:
    """CUDA's autocast computes `torch.softmax` in fp32 and returns fp32; a CPU's leaves it alone."""

    def softmax(x, dim, dtype=None):
        below = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)
        with torch._C._ExcludeDispatchKeyGuard(below):
            return torch.softmax(x, dim, dtype=dtype or torch.float32)

    library = torch.library.Library("aten", "IMPL")
    library.impl("softmax.int", softmax, "AutocastCPU")
    yield
    library._destroy()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kernel", ["sdpa", "batched"])
def test_kernels_train_under_the_autocast_of_a_gpu(kernel, dtype, softmax_of_cuda_autocast):
    x, weight, bias = inputs()
    want = plain_attention(F.linear(x, weight, bias), 2)
    with torch.autocast("cpu", dtype):
        assert torch.softmax(torch.zeros(2, 3, dtype=dtype), -1).dtype == torch.float32
        got = self_attention(x, weight, bias, 2, kernel)
    assert got.dtype == dtype and relative_error(got, want) < 2**-6
    gradient = torch.randn_like(want)
    pairs = zip(
        torch.autograd.grad(got, (x, weight, bias), gradient.to(dtype)),
        torch.autograd.grad(want, (x, weight, bias), gradient),
        strict=True,
    )
    for ours, plain in pairs:
        assert ours.dtype == torch.float32 and relative_error(ours, plain) < 2**-6


def test_every_fused_kernel_of_pytorch_is_a_candidate_of_its_own(monkeypatch):
    """On Hopper 'sdpa' is cuDNN's kernel: FlashAttention is measured only if it is named."""
    allowed = []
    plain = F.scaled_dot_product_attention

    def record(*tensors, **options):
        cuda = torch.backends.cuda
        flags = {"flash": cuda.flash_sdp_enabled(), "cudnn": cuda.cudnn_sdp_enabled()}
        allowed.append({name for name, on in flags.items() if on})
        monkeypatch.undo()
        return plain(*tensors, **options)

    for kernel in ("flash", "cudnn"):
        monkeypatch.setattr(F, "scaled_dot_product_attention", record)
        with suppress(RuntimeError):  # which a CPU lacks
            self_attention(*inputs(), 2, kernel)
        assert allowed.pop() == {kernel}
    x, weight, bias = inputs()
    torch.testing.assert_close(
        self_attention(x, weight, bias, 2, "flash"), plain_attention(F.linear(x, weight, bias), 2)
    )


def test_bf16_attention_is_within_bf16_rounding_of_the_exact_result():
    x, weight, bias = inputs(torch.bfloat16)
    exact = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    got, want = self_attention(x, weight, bias, 2), plain_attention(F.linear(*exact), 2)
    gradient = torch.randn_like(want)
    got.backward(gradient.bfloat16())
    want.backward(gradient)
    assert relative_error(got, want) < 2**-6
    assert relative_error(x.grad, exact[0].grad) < 2**-6


def test_a_score_bias_reaches_the_scores_in_bf16_too():
    x, weight, bias = (t.detach() for t in inputs())
    score_bias = torch.zeros(2, 50, 50)
    score_bias[:, :, 3] = 1000.0  # every token attends to token 3
    want = F.linear(x[:, 3], weight[256:], bias[256:])[:, None].expand(2, 50, 128)
    torch.testing.assert_close(self_attention(x, weight, bias, 2, "batched", score_bias), want)
    half = (t.bfloat16() for t in (x, weight, bias))
    got = self_attention(*half, 2, "auto", score_bias)
    assert got.dtype == torch.bfloat16 and relative_error(got, want) < 2**-6


@pytest.mark.parametrize(
    ("device", "dtype", "capability", "kernel"),
    [
        ("cpu", torch.float32, None, "sdpa"),
        ("cpu", torch.bfloat16, None, "batched"),
        ("cuda", torch.float16, (7, 0), "efficient"),
        ("cuda", torch.float16, (8, 0), "sdpa"),
        ("cuda", torch.bfloat16, (9, 0), "sdpa"),
        ("cuda", torch.float32, (7, 0), "sdpa"),
    ],
)
def test_default_kernel_by_device(monkeypatch, device, dtype, capability, kernel):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert default_kernel(torch.device(device), dtype) == kernel


def test_a_kernel_that_the_device_does_not_have_raises_a_runtime_error():
    """The measurement at the start of training drops candidates that do."""
    assert attention_candidates(CPU) == ("sdpa", "batched")
    assert attention_candidates(torch.device("cuda")) == tuple(ATTENTION_KERNELS)
    for kernel in ("cudnn", "efficient"):
        with pytest.raises(RuntimeError):
            self_attention(*inputs(), 2, kernel)


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "autocast"), [("auto", True), ("batched", False)])
def test_the_tower_compiles_without_graph_breaks(kernel, autocast, monkeypatch):
    """`aot_eager` traces forward and backward as Inductor would, without a C++ compiler."""
    monkeypatch.setattr("fastft.model.linear.NORM_BRANCH_DEVICES", ["cpu"])
    model = Tower(small_arch())
    model.set_attention_kernel(kernel)
    images = torch.randn(2, 3, 32, 32)

    def run(forward) -> list[torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            tokens = forward(images)
        return [tokens, *torch.autograd.grad(tokens.square().sum(), list(model.parameters()))]

    tolerance = {"atol": 0.05, "rtol": 0.05} if autocast else {"atol": 1e-4, "rtol": 1e-4}
    torch.compiler.reset()
    prepare_for_compile()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for got, want in zip(run(compiled), run(model), strict=True):
        torch.testing.assert_close(got, want, **tolerance)
