"""The tower computes the same numbers as open_clip's."""

import json

import open_clip
import pytest
import torch
from open_clip.model import CLIPVisionCfg, _build_vision_tower
from timm.layers import resample_abs_pos_embed
from torch.nn import functional as F

from fastft.model import Arch, Tower, build_classifier, interpolate_positions, load_arch
from tests.refusals import refuses


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("ViT-B-16", 224),
        ("ViT-B-32-quickgelu", 224),
        ("ViT-B-16-quickgelu", 384),
        ("ViT-B-32-quickgelu", 384),
        ("ViT-L-14-quickgelu", 224),
        ("ViT-L-14-quickgelu", 336),
    ],
)
def test_forward_equals_open_clip(name, size):
    """Weights trained at 224, positions interpolated on both sides. test_weight_folders.py compares small towers."""
    images = torch.randn(1, 3, size, size)
    torch.manual_seed(0)
    state = open_clip.create_model(name).visual.state_dict()
    arch = load_arch(name).at(size)
    state["positional_embedding"] = interpolate_positions(state["positional_embedding"], arch)
    theirs = open_clip.create_model(name, force_image_size=size).visual.eval()
    theirs.load_state_dict(state)
    ours = Tower(arch).eval()
    ours.load_state_dict({k: v for k, v in state.items() if not k.startswith(("ln_post", "proj"))})
    with torch.no_grad():
        assert (ours(images) - theirs.transformer(theirs._embeds(images))).abs().max() < 1e-4


def small_arch(**changes) -> Arch:
    values = {
        "image_size": 32, "patch_size": 8, "width": 64, "layers": 3, "heads": 2, "mlp_width": 128, "quick_gelu": True,
        "ln_pre": True, "norm_eps": 1e-5, "layer_scale": False, "embed_dim": 32,
    }  # fmt: skip
    return Arch(**(values | changes))


def test_interpolated_positions_follow_the_reference():
    """Patch grid bicubic without aligned corners, class position untouched (reference run_class_finetuning)."""
    positions = torch.randn(1 + 14 * 14, 768)
    arch = load_arch("ViT-B-16-quickgelu").at(384)
    got = interpolate_positions(positions, arch)
    grid = positions[1:].reshape(1, 14, 14, 768).permute(0, 3, 1, 2)
    want = F.interpolate(grid, size=(24, 24), mode="bicubic", align_corners=False).permute(0, 2, 3, 1).reshape(-1, 768)
    assert got.shape == (577, 768)
    assert torch.equal(got[0], positions[0])
    torch.testing.assert_close(got[1:], want)


@pytest.mark.parametrize("size", [42, 210, 224, 336])
def test_positions_are_resized_as_timm_does_where_the_grid_shrinks(size):
    """timm antialiases by default. Where the grid grows, the two differ: the reference does not antialias."""
    torch.manual_seed(0)
    positions = torch.randn(16 * 16 + 1, 64)
    arch = small_arch(image_size=size, patch_size=14)
    grid = size // 14
    want = resample_abs_pos_embed(positions[None], [grid, grid], antialias=size < 224)[0]
    assert torch.equal(interpolate_positions(positions, arch), want)


@pytest.mark.parametrize(
    "additions", [{"layer_scale": 1.0}, {"rel_pos_bias": True}, {"drop_path": 0.5, "patch_dropout": 0.5}]
)
def test_additions_do_not_change_the_pretrained_function(additions):
    """LayerScale 1, a zero bias table, and stochastic layers in eval mode do not change the outputs."""
    arch = small_arch()
    plain = Tower(arch).eval()
    added = Tower(arch, **additions).eval()
    added.load_state_dict(plain.state_dict(), strict=False)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(added(images), plain(images))


def test_relative_position_bias_reaches_attention_by_offset():
    """A bias on the offset (0, +1) makes every token attend its right neighbour."""
    arch = small_arch(layers=1)
    tower = Tower(arch, rel_pos_bias=True)
    bias = tower.transformer.resblocks[0].attn.rel_pos_bias
    grid = arch.grid
    row = (grid - 1) * (2 * grid - 1) + (grid - 2)  # query column - key column = -1
    with torch.no_grad():
        bias.table[row] = 7
    matrix = bias()[0, 1:, 1:].reshape(grid, grid, grid, grid)
    for y in range(grid):
        for x in range(grid - 1):
            assert matrix[y, x, y, x + 1] == 7
    assert (matrix == 7).sum() == grid * (grid - 1)


def test_drop_path_keeps_the_mean_and_drops_whole_samples():
    from fastft.model.tower import DropPath

    torch.manual_seed(0)
    out = DropPath(0.25)(torch.ones(20_000, 2, 1), torch.rand(20_000))[:, :, 0]
    assert torch.equal(out[:, 0], out[:, 1])
    assert abs(out.mean().item() - 1) < 0.02
    assert abs((out == 0).float().mean().item() - 0.25) < 0.02


def test_every_image_has_its_own_noise():
    """Half a batch with its half of the noise gives that half of the outputs; other noise gives others."""
    tower = Tower(small_arch(), drop_path=0.5, patch_dropout=0.5).train()
    images, noise = torch.randn(4, 3, 32, 32), torch.rand(4, tower.noise_columns)
    whole = tower(images, noise)
    torch.testing.assert_close(torch.cat([tower(images[:2], noise[:2]), tower(images[2:], noise[2:])]), whole)
    assert not torch.equal(tower(images, noise.flip(0)), whole)
    assert Tower(small_arch()).noise_columns == 0


def test_frozen_blocks_record_nothing():
    model = build_classifier(small_arch(), 5, trainable_layers=1)
    tokens = model.visual(torch.randn(2, 3, 32, 32))
    tokens.sum().backward()
    trained = {n.split(".")[2] for n, p in model.visual.named_parameters() if p.grad is not None}
    assert trained == {"2"}
    with torch.no_grad():
        assert not model.visual.embed(torch.randn(1, 3, 32, 32)).requires_grad
    linear = build_classifier(small_arch(), 5, trainable_layers=0)
    assert not linear.visual(torch.randn(2, 3, 32, 32)).requires_grad


@pytest.mark.parametrize("ln_pre", [True, False])
def test_blocks_add_up_in_fp32_under_autocast(ln_pre):
    """In bf16 every addition would round the sum of all blocks before it."""
    tower = Tower(small_arch(ln_pre=ln_pre))
    with torch.autocast("cpu", torch.bfloat16):
        tokens = tower(torch.randn(2, 3, 32, 32))
        branch = tower.transformer.resblocks[0].mlp(tokens)
    assert (tokens.dtype, branch.dtype) == (torch.float32, torch.bfloat16)


def test_checkpointed_gradients_equal_plain_ones():
    model = build_classifier(small_arch(), 5, head_init_scale=1)
    images = torch.randn(2, 3, 32, 32)
    grads = []
    for checkpointing in (False, True):
        model.visual.grad_checkpointing = checkpointing
        model.zero_grad()
        model(images).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_class_and_patches_are_open_clips_tokens_after_ln_post():
    vision = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32, "output_tokens": True}
    theirs = _build_vision_tower(32, CLIPVisionCfg(**vision), quick_gelu=False).eval()
    theirs.proj = None
    model = build_classifier(Arch(32, 8, 64, 2, 2, 256, False, True, 1e-5, False, 32), 5, pool="class+patches").eval()
    model.visual.load_state_dict(theirs.state_dict())
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        class_BD, patches_BND = theirs(images)
        want = torch.cat([class_BD, patches_BND.mean(1)], 1)
        torch.testing.assert_close(model.pooled(images), want, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model(images), model.head(want), rtol=1e-4, atol=1e-6)


def test_the_head_is_that_of_the_reference():
    """LayerNorm per patch token, then mean without the class token, then a head drawn x 0.001."""
    torch.manual_seed(0)
    model = build_classifier(small_arch(), 50).eval()
    images = torch.randn(3, 3, 32, 32)
    tokens = model.visual(images)
    want = F.linear(F.layer_norm(tokens, (64,), eps=1e-5)[:, 1:].mean(1), model.head.weight, model.head.bias)
    torch.testing.assert_close(model(images), want)
    assert model.head.weight.std().item() == pytest.approx(0.02 * 0.001, rel=0.05)
    assert model.head.bias.abs().max() <= 0.001 / 64**0.5


MISSING = object()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("vision_cfg", MISSING, "missing required field vision_cfg"),
        ("quick_gelu", "yes", r"Expected bool, got str - at \$\.quick_gelu"),
        ("vision_cfg.width", MISSING, "missing required field width"),
        ("vision_cfg.width", "64", r"Expected int, got str - at \$\.vision_cfg\.width"),
        ("vision_cfg.layers", 0, r"Expected int >= 1 - at \$\.vision_cfg\.layers"),
        ("vision_cfg.layers", [3, 4, 6, 3], "not a plain CLIP ViT"),
        ("vision_cfg.head_width", 128, "head_width 128 does not divide width 64"),
        ("vision_cfg.mlp_ratio", float("nan"), r"Expected float > 0.0 - at \$\.vision_cfg\.mlp_ratio"),
        ("vision_cfg.norm_kwargs", {"elementwise_affine": False}, r"unknown field elementwise_affine - at .*norm_kwargs"),
        ("vision_cfg.pool_type", "none", r"Invalid enum value 'none' - at \$\.vision_cfg\.pool_type"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_model_configuration_is_one_line(tmp_path, key, value, message):
    vision = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32}
    config: dict = {"embed_dim": 32, "vision_cfg": vision}
    section, name = (vision, key.partition(".")[2]) if "." in key else (config, key)
    section[name] = value
    if value is MISSING:
        del section[name]
    (tmp_path / "tiny.json").write_text(json.dumps(config))
    with refuses(f"tiny.json.*{message}"):
        load_arch(str(tmp_path / "tiny.json"))
