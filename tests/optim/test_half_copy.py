"""A half-precision copy computes the gradients of fp32 weights."""

import pytest
import torch
from timm.models.beit import Beit
from timm.models.swin_transformer import SwinTransformer
from torch.nn import functional as F

from fastft.model import build_classifier
from fastft.optim import Ema, HalfCopy, build_adamw
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
def test_gradients_are_the_models_to_half_precision(dtype):
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


def test_gradients_of_several_backward_passes_add_up():
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


def test_refresh_rounds_the_trained_weights_and_leaves_the_model_alone():
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


def tiny_timm(kind: str) -> torch.nn.Module:
    """Swin with shifted windows, whose mask is a buffer; BEiT with a relative position bias and a key bias, a buffer too."""
    if kind == "swin":
        sizes = {"img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (2,), "num_heads": (2,)}
        return SwinTransformer(**sizes, num_classes=5)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return Beit(**sizes, num_classes=5, use_rel_pos_bias=True, use_abs_pos_emb=False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["swin", "beit"])
def test_models_with_buffers_in_their_arithmetic_train_a_step(kind, dtype):
    torch.manual_seed(0)
    model = tiny_timm(kind)
    half = HalfCopy(model, dtype)
    optimizer = build_adamw([{"params": list(model.parameters())}], betas=(0.9, 0.999), eps=1e-8)
    optimizer.param_groups[0]["lr"] = 1e-3
    images = torch.randn(4, 3, 32, 32)
    logits = half.module(images.to(dtype))
    torch.testing.assert_close(logits.float(), model(images), atol=0.02, rtol=0.02)
    before = [p.detach().clone() for p in half.module.parameters()]
    F.cross_entropy(logits.float(), torch.arange(4)).backward()
    half.move_gradients()
    optimizer.step()
    half.refresh()
    assert logits.dtype == dtype
    changed = [not torch.equal(p, b) for p, b in zip(half.module.parameters(), before, strict=True)]
    assert sum(changed) > len(changed) / 2  # bf16 rounds small changes away


def test_position_encodings_without_parameters_stay_in_fp32():
    rope = torch.nn.Module()
    rope.register_buffer("bands", torch.linspace(0, 1, 5))
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Sequential(rope))
    assert {b.dtype for b in HalfCopy(model, torch.float16).module.buffers()} == {torch.float32}
