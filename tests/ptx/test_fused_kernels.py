"""The PTX of the fused kernels, executed on the CPU, gives PyTorch's numbers in fp32, rounded, and does nothing forbidden."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

pytest.importorskip("numba.cuda.cudadrv.nvvm")
from fastft.model import build_classifier
from fastft.model.fused import add_norm, biased_silu
from fastft.model.fused_kernels import SIGNATURES
from fastft.train.step_choice import TOLERANCE, compare
from tests.augment.test_cuda import assert_assembles
from tests.model.test_tower import small_arch
from tests.ptx.fused import executed_kernels, fused_ptx
from tests.ptx.gpu import OLDEST

HALVES = [torch.float16, torch.bfloat16]
NEWER = (9, 0)
ROUNDING = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def chosen(*widths: int) -> list:
    """Every width with every dtype on every architecture; each dtype at one width on one of them is fast."""
    fast = ((widths[0], HALVES[0], OLDEST), (widths[1], HALVES[1], NEWER))
    cases = itertools.product(widths, HALVES, (OLDEST, NEWER))
    return [pytest.param(*case, marks=() if case in fast else pytest.mark.slow) for case in cases]


def random(seed: int, *shape: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(dtype).requires_grad_()


def assert_rounded(found: Tensor, exact: Tensor, halves: float = 1.01) -> None:
    """Within so many times half a unit in the last place, and what rounding of the sum's terms in fp32 leaves."""
    error = (found.double() - exact.double()).abs()
    allowed = halves * ROUNDING[found.dtype] * exact.double().abs() + 4e-6 * exact.double().abs().max()
    assert (error <= allowed).all(), float((error / allowed).max())


@pytest.mark.parametrize(("width", "dtype", "arch"), chosen(768, 70, 1280))
def test_residual_sum_with_layer_norm(width, dtype, arch):
    """Rows of a large mean too, and a width that leaves threads without a channel."""
    rows = 5
    x, branch = random(0, rows, width, dtype=dtype, scale=3.0), random(1, rows, width, dtype=dtype)
    with torch.no_grad():
        x[2] += 100
    norm = torch.nn.LayerNorm(width).to(dtype)
    with torch.no_grad():
        norm.weight.copy_(1 + 0.3 * random(2, width, dtype=dtype))
        norm.bias.copy_(random(3, width, dtype=dtype))
    bias = random(4, width, dtype=dtype)
    grads = random(5, rows, width, dtype=dtype).detach(), random(6, rows, width, dtype=dtype).detach()
    with executed_kernels(arch) as runs:
        total, normed = add_norm(x, branch, bias, norm)
        found = torch.autograd.grad((total, normed), (x, branch, norm.weight, norm.bias, bias), grads)
    assert len(runs) == 2 and not any(runs)

    exact_total = total.detach().double().requires_grad_()
    gain, shift = (p.detach().double().requires_grad_() for p in (norm.weight, norm.bias))
    exact = F.layer_norm(exact_total, (width,), gain, shift, norm.eps)
    wanted = torch.autograd.grad((exact_total + 0, exact), (exact_total, gain, shift), [g.double() for g in grads])
    assert torch.equal(total, x + branch)
    assert_rounded(normed, exact)
    assert torch.equal(found[0], found[1])
    for got, want in zip(found[1:], (*wanted, wanted[0].sum(0)), strict=True):
        assert_rounded(got, want)


@pytest.mark.parametrize(("width", "dtype", "arch"), chosen(3072, 70))
def test_silu_with_the_gradient_of_a_bias(width, dtype, arch):
    """Also where the exponential overflows, and NaN stays NaN."""
    rows = 5
    x, bias = random(0, rows, width, dtype=dtype, scale=4.0), random(1, width, dtype=dtype)
    grad = random(2, rows, width, dtype=dtype).detach()
    with torch.no_grad():
        x[0, :4] = torch.tensor([100.0, -100.0, -20.0, 0.0])
        x[1, 4] = torch.nan
    with executed_kernels(arch) as runs:
        found = torch.autograd.grad(biased_silu(x, bias), (x, bias), grad)
    assert len(runs) == 1 and not any(runs)
    exact = x.detach().double().requires_grad_()
    (want,) = torch.autograd.grad(F.silu(exact), exact, grad.double())
    assert found[0][1, 4].isnan() and found[1][4].isnan()
    keep = [column for column in range(width) if column != 4]
    assert_rounded(found[0][:, keep], want[:, keep])
    assert_rounded(found[1][keep], want.sum(0)[keep])


@pytest.mark.parametrize(("width", "dtype", "arch"), chosen(768, 1024, 1280))
def test_kernels_compile_without_spills(width, dtype, arch, tmp_path):
    """At the widths of ViT-B, -L and -H and of their MLPs."""
    for operation in SIGNATURES:
        ptx = fused_ptx(operation, 4 * width if operation == "silu_backward" else width, dtype, arch)
        assert_assembles(ptx, arch, tmp_path)


@pytest.mark.parametrize("dtype", HALVES)
def test_a_tower_of_executed_kernels_has_eagers_logits_and_gradients(dtype):
    torch.manual_seed(0)
    model = build_classifier(small_arch(), 5, head_init_scale=1.0).to(dtype)
    images, found = torch.randn(2, 3, 32, 32).to(dtype), []
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for model.visual.fused in (False, True):
        with executed_kernels() as runs:
            logits = model(images)
            gradients = torch.autograd.grad(logits.float().square().sum(), list(trained.values()))
        found.append({"logits": logits.detach(), **dict(zip(trained, gradients, strict=True))})
    assert len(runs) == 2 * 5 + 2 and not any(runs)
    compare(found[1], found[0], TOLERANCE[dtype])
