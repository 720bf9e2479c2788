"""A half-precision copy computes the gradients of fp32 weights."""

import pytest
import torch
from torch.nn import functional as F

from fastft.model import build_classifier
from fastft.optim import Ema, HalfCopy
from tests.model.test_tower import small_arch

ADDITIONS = {"drop_path": 0.3, "layer_scale": 1.0, "patch_dropout": 0.0, "rel_pos_bias": True}


def step(model: torch.nn.Module, forward: torch.nn.Module, dtype: torch.dtype) -> torch.Tensor:
    torch.manual_seed(1)
    images, noise = torch.randn(4, 3, 32, 32), torch.rand(4, model.visual.noise_columns)
    logits = forward(images.to(dtype), noise)
    loss = F.cross_entropy(logits.float(), torch.arange(4))
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_are_the_models_to_half_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = build_classifier(small_arch(), 5, head_init_scale=1, trainable_layers=2, **ADDITIONS)
    half = HalfCopy(model, dtype)
    loss = step(model, half.module, dtype)
    half.move_gradients()
    moved = {n: p.grad for n, p in model.named_parameters()}
    model.zero_grad()
    want = step(model, model.train(), torch.float32)
    torch.testing.assert_close(loss, want, atol=0.02, rtol=0.02)
    for name, p in model.named_parameters():
        assert (p.grad is None) == (moved[name] is None) == (not p.requires_grad), name
        if p.grad is not None:
            assert moved[name].dtype == torch.float32
            assert (moved[name] - p.grad).norm() < 0.1 * p.grad.norm() + 1e-4, name
    assert all(p.dtype == dtype for p in half.module.parameters())


def test_gradients_of_several_backward_passes_add_up() -> None:
    torch.manual_seed(0)
    model = build_classifier(small_arch(), 5, head_init_scale=1)
    half = HalfCopy(model, torch.float16)
    step(model, half.module, torch.float16)
    half.move_gradients()
    once = model.head.weight.grad
    half.module.zero_grad()
    for _ in range(2):
        step(model, half.module, torch.float16)
    half.move_gradients()
    torch.testing.assert_close(model.head.weight.grad, 2 * once, rtol=1e-2, atol=1e-4)


def test_refresh_rounds_the_trained_weights_and_leaves_the_model_alone() -> None:
    """An update far below half precision's resolution accumulates in the model and reaches the copy in time."""
    model = build_classifier(small_arch(), 5, trainable_layers=1)
    half, ema = HalfCopy(model, torch.float16), Ema(model, 0.9)
    names, before = list(model.state_dict()), half.module.head.bias.detach().clone()
    with torch.no_grad():
        model.head.bias.fill_(1.0)
        half.refresh()
        for _ in range(16):
            model.head.bias += 2.0**-13  # half of it is 1's distance to the next fp16 number below it
            half.refresh()
    ema.update()
    assert torch.equal(half.module.head.bias, torch.full_like(before, 1 + 2.0**-9))
    assert list(model.state_dict()) == list(half.module.state_dict()) == names
    assert all(p.dtype == torch.float32 for m in (model, ema.module) for p in m.parameters())
