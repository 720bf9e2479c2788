"""The tower is open_clip's, number for number."""

import json

import open_clip
import pytest
import torch
from torch.nn import functional as F

from fastft.model import Arch, Tower, build_classifier, interpolate_positions, load_arch, load_tower_weights


def open_clip_tokens(name: str, size: int, images: torch.Tensor) -> tuple[torch.nn.Module, torch.Tensor]:
    """open_clip's own tower with random weights, and its tokens after the last block."""
    torch.manual_seed(0)
    theirs = open_clip.create_model(name, force_image_size=size).visual.eval()
    with torch.no_grad():
        return theirs, theirs.transformer(theirs._embeds(images))


@pytest.mark.parametrize("name", ["ViT-B-32-quickgelu", "ViT-B-16-quickgelu", "ViT-B-16"])
def test_forward_equals_open_clip(name: str) -> None:
    images = torch.randn(2, 3, 224, 224)
    theirs, expected = open_clip_tokens(name, 224, images)
    ours = Tower(load_arch(name)).eval()
    ours.load_state_dict(
        {k: v for k, v in theirs.state_dict().items() if not k.startswith(("ln_post", "proj"))}
    )
    with torch.no_grad():
        assert (ours(images) - expected).abs().max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("ViT-B-16-quickgelu", 384),
        ("ViT-B-32-quickgelu", 384),
        ("ViT-L-14-quickgelu", 224),
        ("ViT-L-14-quickgelu", 336),
    ],
)
def test_forward_equals_open_clip_for_every_recipe_shape(name: str, size: int) -> None:
    """Weights trained at 224, positions interpolated on both sides."""
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


def test_interpolated_positions_follow_the_reference() -> None:
    """Patch grid bicubic without aligned corners, class position untouched (reference run_class_finetuning)."""
    positions = torch.randn(1 + 14 * 14, 768)
    arch = load_arch("ViT-B-16-quickgelu").at(384)
    got = interpolate_positions(positions, arch)
    grid = positions[1:].reshape(1, 14, 14, 768).permute(0, 3, 1, 2)
    want = (
        F.interpolate(grid, size=(24, 24), mode="bicubic", align_corners=False)
        .permute(0, 2, 3, 1)
        .reshape(-1, 768)
    )
    assert got.shape == (577, 768)
    assert torch.equal(got[0], positions[0])
    torch.testing.assert_close(got[1:], want)


@pytest.mark.parametrize(
    "additions", [{"layer_scale": 1.0}, {"rel_pos_bias": True}, {"drop_path": 0.5, "patch_dropout": 0.5}]
)
def test_additions_do_not_change_the_pretrained_function(additions: dict) -> None:
    """LayerScale 1, a zero bias table, and stochastic layers in eval mode leave the outputs as they are."""
    arch = small_arch()
    plain = Tower(arch).eval()
    added = Tower(arch, **additions).eval()
    added.load_state_dict(plain.state_dict(), strict=False)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(added(images), plain(images))


def test_relative_position_bias_reaches_attention_by_offset() -> None:
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


def test_drop_path_keeps_the_mean_and_drops_whole_samples() -> None:
    from fastft.model.tower import DropPath

    torch.manual_seed(0)
    out = DropPath(0.25).train()(torch.ones(20_000, 2, 1))[:, :, 0]
    assert torch.equal(out[:, 0], out[:, 1])
    assert abs(out.mean().item() - 1) < 0.02
    assert abs((out == 0).float().mean().item() - 0.25) < 0.02


def test_drop_path_grows_linearly_over_blocks() -> None:
    tower = Tower(small_arch(), drop_path=0.2)
    assert [block.drop_path.rate for block in tower.transformer.resblocks] == pytest.approx([0, 0.1, 0.2])


def test_patch_dropout_keeps_the_class_token_and_the_share_asked_for() -> None:
    tower = Tower(small_arch(), patch_dropout=0.5).train()
    assert tower(torch.randn(2, 3, 32, 32)).shape[1] == 1 + 8


def test_frozen_blocks_record_nothing() -> None:
    model = build_classifier(small_arch(), 5, trainable_layers=1)
    tokens = model.visual(torch.randn(2, 3, 32, 32))
    tokens.sum().backward()
    trained = {n.split(".")[2] for n, p in model.visual.named_parameters() if p.grad is not None}
    assert trained == {"2"}
    with torch.no_grad():
        assert not model.visual.embed(torch.randn(1, 3, 32, 32)).requires_grad
    linear = build_classifier(small_arch(), 5, trainable_layers=0)
    assert not linear.visual(torch.randn(2, 3, 32, 32)).requires_grad


def test_checkpointed_gradients_equal_plain_ones() -> None:
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


def test_head_is_the_references() -> None:
    """LayerNorm per patch token, then mean without the class token, then a head drawn x 0.001."""
    torch.manual_seed(0)
    model = build_classifier(small_arch(), 50).eval()
    images = torch.randn(3, 3, 32, 32)
    tokens = model.visual(images)
    want = F.linear(F.layer_norm(tokens, (64,), eps=1e-5)[:, 1:].mean(1), model.head.weight, model.head.bias)
    torch.testing.assert_close(model(images), want)
    assert model.head.weight.std().item() == pytest.approx(0.02 * 0.001, rel=0.05)
    assert model.head.bias.abs().max() <= 0.001 / 64**0.5


def test_open_clip_json_file_is_an_architecture(tmp_path) -> None:
    config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32},
    }
    (tmp_path / "tiny.json").write_text(json.dumps(config))
    arch = load_arch(str(tmp_path / "tiny.json"))
    assert (arch.heads, arch.tokens, arch.quick_gelu) == (2, 17, False)


def test_weights_of_the_same_tower_load_strictly(tmp_path) -> None:
    tower = Tower(small_arch())
    torch.save({"visual." + k: v for k, v in tower.state_dict().items()}, tmp_path / "w.pt")
    other = Tower(small_arch())
    load_tower_weights(other, str(tmp_path / "w.pt"), "tiny")
    for a, b in zip(tower.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)
