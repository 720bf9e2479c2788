"""The fused residual stream computes what the blocks compute, with CPU implementations of its operations.

tests/ptx executes the CUDA kernels, tests/gpu runs them.
"""

from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastft.model import build_classifier, tower
from fastft.model.fused import add_norm, biased_silu
from tests.model.fused_reference import cpu_operations
from tests.model.test_tower import small_arch


@pytest.fixture(autouse=True)
def operations() -> Iterator[None]:
    with cpu_operations():
        yield


def test_residual_sum_with_norm_and_silu_have_the_gradients_of_the_formulas():
    """Also of the bias that their input contains."""
    torch.manual_seed(0)
    shapes = (2, 3, 8), (2, 3, 8), (8,), (8,), (8,)
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    def normed(x: Tensor, branch: Tensor, bias: Tensor, gain: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        norm = nn.LayerNorm(8)
        del norm.weight, norm.bias
        norm.weight, norm.bias = gain, shift
        return add_norm(x, branch + bias.detach(), bias, norm)

    def activated(x: Tensor, bias: Tensor) -> Tensor:
        return biased_silu(x + bias.detach(), bias)

    total, result = normed(*inputs)
    torch.testing.assert_close(total, inputs[0] + inputs[1] + inputs[2])
    torch.testing.assert_close(result, F.layer_norm(total, (8,), inputs[3], inputs[4]))
    assert torch.autograd.gradcheck(normed, inputs)
    assert torch.autograd.gradcheck(activated, (inputs[0].detach().view(6, 8).requires_grad_(), inputs[2]))


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({}, {}), ({"quick_gelu": False}, {}), ({}, {"patch_dropout": 0.5}), ({}, {"rel_pos_bias": True}),
        ({}, {"trainable_layers": 2}), ({}, {"trainable_layers": 0}), ({"layers": 1}, {}),
    ],
)  # fmt: skip
def test_a_fused_tower_has_the_outputs_and_gradients_of_its_blocks(changes, options):
    torch.manual_seed(0)
    model = build_classifier(small_arch(**changes), 5, head_init_scale=1.0, **options)
    trained = [p for p in model.parameters() if p.requires_grad]
    for p in trained:  # biases, gains and shifts too
        p.data.add_(0.1 * torch.randn_like(p))
    images, noise = torch.randn(4, 3, 32, 32), torch.rand(4, model.visual.noise_columns)
    found = []
    for model.visual.fused in (False, True):
        with mock.patch.object(tower, "add_norm", wraps=add_norm) as used:
            logits = model(images, noise)
        found.append((logits, *torch.autograd.grad(logits.square().sum(), trained)))
    blocks = len(model.visual.blocks) - model.visual.frozen_blocks
    assert used.call_count == max(0, 2 * blocks - 1)
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(model(images, noise), found[0][0])
