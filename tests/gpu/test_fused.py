"""Fused steps on a card, whose kernels the tests of tests/ptx execute on a CPU; there, formulas stand for the kernels."""

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastft.bench.step_bench import our_step, random_batch
from fastft.machine.precision import Precision
from fastft.model.fused import add_norm, biased_silu
from fastft.train.step import StepChoice
from fastft.train.step_choice import TOLERANCE, compare
from tests.gpu.test_step import clip_vit, no_synchronisation
from tests.model.fused_reference import cpu_operations

HALVES = [torch.float16, torch.bfloat16]
STEPS = 20


@pytest.fixture(autouse=True)
def operations(device: torch.device) -> Iterator[None]:
    with cpu_operations() if device.type == "cpu" else nullcontext():
        yield


@pytest.mark.parametrize("width", [384, 768, 1024, 1280])
@pytest.mark.parametrize("dtype", HALVES)
def test_operations_are_those_of_fp32_and_repeat_bit_for_bit(dtype, width, device):
    torch.manual_seed(0)
    rows = 5 if device.type == "cpu" else 1000
    x, branch, *grads = (torch.randn(rows, width, device=device, dtype=dtype, requires_grad=True) for _ in range(4))
    norm = torch.nn.LayerNorm(width, device=device, dtype=dtype)
    bias = torch.zeros(width, device=device, dtype=dtype, requires_grad=True)

    def run() -> list[Tensor]:
        total, normed = add_norm(x, branch, bias, norm)
        parameters = x, norm.weight, norm.bias, bias
        first = torch.autograd.grad((total, normed), parameters, grads)
        return [total, normed, *first, *torch.autograd.grad(biased_silu(x, bias), (x, bias), grads[0])]

    total = (x + branch).detach().float().requires_grad_()
    gain, shift = (p.detach().float().requires_grad_() for p in (norm.weight, norm.bias))
    normed = F.layer_norm(total, (width,), gain, shift, norm.eps)
    by = [g.float() for g in grads]
    first = torch.autograd.grad((total + 0, normed), (total, gain, shift), by)
    silu_input = x.detach().float().requires_grad_()
    (slope,) = torch.autograd.grad(F.silu(silu_input), silu_input, by[0])
    found, exact = run(), [total, normed, *first, first[0].sum(0), slope, slope.sum(0)]
    for number, (got, want) in enumerate(zip(found, exact, strict=True)):
        error = (got.float() - want).norm() / want.norm()
        assert error < (1e-3 if dtype == torch.float16 else 8e-3), number
    assert all(map(torch.equal, run(), found))
    broken = torch.full((2, width), torch.nan, device=device, dtype=dtype, requires_grad=True)
    (slope,) = torch.autograd.grad(biased_silu(broken, bias), broken, torch.ones_like(broken))
    assert slope.isnan().all(), "a card's NaN has all bits set, which rounding to bf16 must not carry over"


@pytest.mark.parametrize("dtype", HALVES)
def test_fused_steps_have_eagers_logits_gradients_and_losses(dtype, device):
    """The first pass within the tolerance of step choice, then losses of 20 steps; no step waits for the device."""
    precision, arch = Precision(dtype, device.type, half_residual=True), clip_vit(device)
    images, labels = random_batch(arch, 4 if device.type == "cpu" else 64, device)
    images, found, curves = images.to(dtype), [], []
    for mode in ("eager", "fused"):
        torch.manual_seed(0)
        runner = our_step(arch, precision, choice=StepChoice(mode))
        step = runner.step
        torch.nn.init.normal_(step.trained.head.weight, std=0.1)  # else gradients are too small for fp16
        logits = step.micro_batch(images, labels, step=0, last=True)
        gradients = {name: p.grad for name, p in step.trained.named_parameters() if p.grad is not None}
        found.append({"logits": logits} | {name: g.clone() for name, g in gradients.items()})
        step.clear_gradients()
        losses = []
        for k in range(STEPS):
            with no_synchronisation(device) if k > 2 else nullcontext():
                runner(images, labels)
            losses.append(step.loss_sum.clone())
        curves.append(torch.stack(losses).diff().cpu())
    assert len(found[0]) > 10
    compare(found[1], found[0], TOLERANCE[dtype])
    torch.testing.assert_close(curves[1], curves[0], rtol=0.05, atol=0.02)
    assert curves[0][-1] < curves[0][0]
