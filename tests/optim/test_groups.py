"""Groups, schedule and EMA equal the reference, checked with independent formulas."""

import math

import pytest
import torch
from timm.utils import ModelEma

from fastft.model import build_classifier, load_arch
from fastft.optim import Ema, build_adamw, decay_for_batch, layer_groups, optimizer_groups, set_lr
from tests.model.test_tower import small_arch

B16_SCALES = [  # printed by the reference's B/16 run, layer decay 0.6
    0.00130607, 0.00217678, 0.00362797, 0.00604662, 0.0100777, 0.0167962, 0.0279936, 0.046656, 0.07776, 0.1296, 0.216,
    0.36, 0.6, 1.0,
]  # fmt: skip


def groups_of(name: str, size: int, freeze_conv1: bool, decay: float):
    arch = load_arch(name).at(size)
    with torch.device("meta"):
        model = build_classifier(arch, 1000, freeze_conv1=freeze_conv1)
    return model, layer_groups(model, arch.layers, decay, 0.05)


@pytest.mark.parametrize(
    ("name", "size", "freeze_conv1", "trainable"),
    [
        ("ViT-B-16-quickgelu", 224, True, 85_978_600),
        ("ViT-B-16-quickgelu", 384, False, 86_860_264),
        ("ViT-L-14-quickgelu", 224, True, 303_602_664),
        ("ViT-L-14-quickgelu", 336, False, 304_532_456),
    ],
)
def test_trainable_parameters_equal_those_in_the_reference_logs(name, size, freeze_conv1, trainable):
    _, groups = groups_of(name, size, freeze_conv1, 0.6)
    assert sum(g.parameters for g in groups) == trainable


def test_weight_decay_is_on_matrices_only():
    model, groups = groups_of("ViT-B-16-quickgelu", 384, False, 0.6)
    decayed = {n for g in groups if g.weight_decay for n in g.names}
    leaves = {".".join(n.split(".")[-2:]) for n in decayed}
    assert leaves == {
        "visual.conv1.weight".removeprefix("visual."), "attn.in_proj_weight", "out_proj.weight", "c_fc.weight",
        "c_proj.weight", "head.weight",
    }  # fmt: skip
    assert decayed | {n for g in groups if not g.weight_decay for n in g.names} == {
        n for n, _ in model.named_parameters()
    }


def test_the_relative_position_bias_is_exempt_from_weight_decay():
    """optim_factory.py:60 of the reference exempts relative_position_bias."""
    model = build_classifier(small_arch(), 5, rel_pos_bias=True)
    exempt = {n for g in layer_groups(model, 3, 0.5, 0.05) if not g.weight_decay for n in g.names}
    tables = {n for n, _ in model.named_parameters() if n.endswith("rel_pos_bias.table")}
    assert len(tables) == 3 and tables <= exempt


def test_layers_are_numbered_from_embeddings_to_head():
    _, groups = groups_of("ViT-B-16-quickgelu", 384, False, 0.6)
    where = {n: g.layer_id for g in groups for n in g.names}
    assert {
        where[f"visual.{n}"] for n in ("conv1.weight", "class_embedding", "positional_embedding", "ln_pre.bias")
    } == {0}
    assert where["visual.transformer.resblocks.0.ln_1.weight"] == 1
    assert where["visual.transformer.resblocks.11.mlp.c_fc.weight"] == 12
    assert {where["fc_norm.weight"], where["head.bias"]} == {13}


@pytest.mark.parametrize("trainable", [None, 6])
def test_the_rates_of_the_layers_are_those_that_the_reference_prints(trainable):
    """Also below frozen blocks: a block's rate depends on its distance from the head alone."""
    with torch.device("meta"):
        model = build_classifier(load_arch("ViT-B-16-quickgelu"), 1000, freeze_conv1=False, trainable_layers=trainable)
    scales = {g.layer_id: g.lr_scale for g in layer_groups(model, 12, 0.6, 0.05)}
    assert scales == pytest.approx({k: B16_SCALES[k] for k in range(7 if trainable else 0, 14)}, rel=1e-4)


def test_fused_adamw_equals_the_textbook():
    """p <- p - lr wd p - lr m_hat / (sqrt(v_hat) + eps), weight decay scaled by the group's lr."""
    model = build_classifier(small_arch(layers=1), 5)
    groups = layer_groups(model, 1, 0.5, 0.05)
    optimizer = build_adamw(optimizer_groups(model, groups), betas=(0.9, 0.999), eps=1e-8)
    before = {n: p.detach().double().clone() for n, p in model.named_parameters() if p.requires_grad}
    torch.manual_seed(0)
    for p in model.parameters():
        p.grad = torch.randn_like(p) if p.requires_grad else None
    set_lr(optimizer, 1e-2)
    optimizer.step()
    for group in groups:
        lr = 1e-2 * group.lr_scale
        for name in group.names:
            p = model.get_parameter(name)
            g = p.grad.double()
            want = before[name] * (1 - lr * group.weight_decay) - lr * g / (g.abs() + 1e-8)
            torch.testing.assert_close(p.detach().double(), want, atol=1e-6, rtol=1e-5)


def test_ema_equals_timms():
    torch.manual_seed(0)
    model = build_classifier(small_arch(), 5)
    theirs, ours = ModelEma(model, decay=0.9), Ema(model, 0.9)
    for _ in range(5):
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad:
                    p.add_(torch.randn_like(p))
        theirs.update(model)
        ours.update()
    for a, b in zip(ours.module.state_dict().values(), theirs.ema.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_ema_shares_frozen_weights_and_copies_the_rest():
    model = build_classifier(small_arch(), 5, trainable_layers=1)
    ema = Ema(model, 0.9)
    pairs = zip(model.named_parameters(), ema.module.parameters(), strict=True)
    assert all((a.data_ptr() == b.data_ptr()) == (not a.requires_grad) for (_, a), b in pairs)
    assert model.head.weight.requires_grad and not ema.module.head.weight.requires_grad


def test_ema_decay_keeps_its_horizon_in_images():
    assert decay_for_batch(0.9998, 2048, 2048) == 0.9998
    assert decay_for_batch(0.9998, 1024, 2048) == pytest.approx(0.99990, abs=5e-7)
    assert decay_for_batch(0.9998, 256, 2048) ** 8 == pytest.approx(0.9998)
    assert math.isclose(decay_for_batch(0.9998, 4096, 2048), 0.9998**2)
