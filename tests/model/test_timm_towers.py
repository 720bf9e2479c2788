"""timm's models as towers: layers, FLOPs, initialisation, stochastic layers and refusals, compared with timm itself."""

import copy

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay

from beton_tools.base.errors import UserError
from fastft.model import ImageClassifier, count_flops, load_arch
from fastft.model.arch import load_open_clip_arch
from fastft.model.recipe_model import build_model, recipe_arch
from fastft.model.timm_tower import NoisyDropPath, NoisyPatchDropout
from fastft.optim import layer_groups
from fastft.recipe import load_recipe

TOWERS = {  # the list; sizes are those that the slow test trains at
    "vit_base_patch16_224": 64, "vit_small_patch14_dinov2": 56, "vit_small_patch16_dinov3": 64,
    "vit_base_patch16_siglip_224.v2_webli": 64, "eva02_small_patch14_336": 56, "vit_pe_core_base_patch16_224": 64,
    "convnext_tiny": 64, "swin_tiny_patch4_window7_224": 64,
}  # fmt: skip
TINY = {"test_vit": 32, "test_vit3": 32, "test_convnext": 64, "vit_pe_core_tiny_patch16_384": 32}


def recipe(name: str, size: int, **changes: object):
    values = {"model.arch": f"timm/{name}", "model.weights": "random", "model.image_size": size, "data.num_classes": 7}
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    return load_recipe("final_b16", [f"--{key}={value}" for key, value in values.items()])


def build(name: str, size: int, meta: bool = False, **changes: object) -> ImageClassifier:
    with torch.device("meta" if meta else "cpu"):
        return build_model(recipe(name, size, **changes))


@pytest.mark.parametrize("name", TOWERS)
def test_layers_and_weight_decay_are_those_of_timm_optim(name):
    model = build(name, TOWERS[name], meta=True, model__freeze_conv1=False)
    trunk = model.visual.trunk
    names = {id(p): n for n, p in trunk.named_parameters()}
    theirs = {
        f"visual.trunk.{names[id(p)]}": (group["lr_scale"], group["weight_decay"])
        for group in param_groups_layer_decay(
            trunk, 0.05, no_weight_decay_list=getattr(trunk, "no_weight_decay", set)(), layer_decay=0.65
        )
        for p in group["params"]
    }
    groups = layer_groups(model, model.visual.arch.layers, 0.65, 0.05)
    ours = {n: (g.lr_scale, g.weight_decay) for g in groups for n in g.names}
    assert ours.keys() == theirs.keys() and len(ours) > 100
    assert all(ours[n] == pytest.approx(theirs[n], rel=1e-12) for n in ours)


@pytest.mark.parametrize("name", ["test_vit", "vit_small_patch16_dinov3", "vit_small_patch14_reg4_dinov2"])
def test_class_and_patches_are_the_class_token_beside_the_mean_patch_token(name):
    """After the last LayerNorm; registers (four in both DINO models) are in neither. As DINOv2's linear heads read them."""
    model = build(name, 56 if "14" in name else 32, model__pool="class+patches", model__head_init_scale=1).eval()
    trunk, images = model.visual.trunk, torch.rand(2, 3, *[model.visual.arch.image_size] * 2)
    with torch.no_grad():
        tokens = trunk.forward_features(images)
        registers = 4 if "dino" in name else 0
        want = torch.cat([tokens[:, 0], tokens[:, 1 + registers :].mean(1)], 1)
        assert tokens.shape[1] - 1 - registers == model.visual.arch.grid**2
        torch.testing.assert_close(model.pooled(images), want)
        torch.testing.assert_close(model(images), model.head(want))
    assert model.head.in_features == 2 * model.visual.arch.width and model.layer_id("visual.trunk.head.weight") > 1


@pytest.mark.parametrize("name", ["test_vit3", "convnext_tiny", "vit_base_patch16_siglip_224"])
def test_class_and_patches_need_a_class_token(name):
    with pytest.raises(UserError, match="has no class token beside its patches"):
        build(name, 224, meta=True, model__pool="class+patches")


@pytest.mark.parametrize("name", TINY)
def test_weights_are_those_that_timm_draws_and_the_head_is_scaled(name):
    model = build(name, TINY[name], model__head_init_scale=0.5)
    torch.manual_seed(0)
    size = {} if name == "test_convnext" else {"img_size": TINY[name]}
    theirs = timm.create_model(name, num_classes=7, **size).state_dict()
    ours = {n.removeprefix("visual.trunk."): value for n, value in model.state_dict().items()}
    assert ours.keys() == theirs.keys()
    head = model.visual.trunk.pretrained_cfg["classifier"]
    for key, value in theirs.items():
        assert torch.equal(ours[key], value * (0.5 if key.startswith(f"{head}.") else 1.0)), key


# GMAC at 224 px: ConvNeXt-T 4.5 and Swin-T 4.5 (their papers, Table 1), ViT-B/16 as fastft's own formula
@pytest.mark.parametrize(
    ("name", "gmac"), [("convnext_tiny", 4.5), ("swin_tiny_patch4_window7_224", 4.5), ("vit_base_patch16_224", 17.6)]
)
def test_flops_are_the_published_ones(name, gmac):
    flops = count_flops(load_arch(f"timm/{name}").at(224), 1000)
    assert flops.forward / 2e9 == pytest.approx(gmac, abs=0.06)
    assert flops.train == 3 * flops.forward


@pytest.mark.parametrize(("frozen", "dropped"), [(0, 0.0), (6, 0.0), (12, 0.0), (0, 0.5)])
def test_flops_of_a_vit_equal_those_of_the_own_tower(frozen, dropped):
    theirs, own = load_arch("timm/vit_base_patch16_224").at(224), load_open_clip_arch("ViT-B-16").at(224)
    counts = [count_flops(arch, 1000, frozen_blocks=frozen, patch_dropout=dropped) for arch in (theirs, own)]
    assert counts[0].forward == pytest.approx(counts[1].forward, rel=1e-3)
    assert counts[0].train == pytest.approx(counts[1].train, rel=3e-3)


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "convnext_tiny"])
@pytest.mark.parametrize("trainable", [0, 1, 4])
def test_trainable_layers_are_the_top_ones_and_the_head(name, trainable):
    model = build(name, 224, meta=True, model__trainable_layers=trainable)
    trained = {model.layer_id(n) for n, p in model.named_parameters() if p.requires_grad}
    layers = model.visual.arch.layers
    assert trained == set(range(layers + 1 - trainable, layers + 2))


def test_the_first_convolution_is_frozen_where_asked():
    for name, conv in (("test_vit", "patch_embed.proj."), ("test_convnext", "stem.0.")):
        frozen = [n for n, p in build(name, 64, meta=True).named_parameters() if not p.requires_grad]
        assert frozen and all(n.startswith(f"visual.trunk.{conv}") for n in frozen)
        free = build(name, 64, meta=True, model__freeze_conv1=False)
        assert all(p.requires_grad for p in free.parameters())


def noisy(name: str, **changes: object) -> tuple[ImageClassifier, torch.Tensor, torch.Tensor]:
    model = build(name, TINY[name], model__head_init_scale=1, **changes).train()
    images = torch.randn(4, 3, TINY[name], TINY[name], generator=torch.Generator().manual_seed(1))
    return (model, images, torch.rand(4, model.visual.noise_columns, generator=torch.Generator().manual_seed(2)))


@pytest.mark.parametrize("name", TINY)
def test_stochastic_depth_depends_on_the_given_numbers_only(name):
    model, images, noise = noisy(name, model__drop_path=0.5)
    rates = [m.drop_path.rate for m in model.modules() if isinstance(m, NoisyDropPath)]
    theirs = timm.create_model(name, drop_path_rate=0.5)
    kind = timm.layers.DropPath
    assert rates == [m.drop_prob for m in theirs.modules() if isinstance(m, kind) and m.drop_prob] and max(rates) == 0.5
    assert not any(isinstance(m, kind) and m.drop_prob for m in model.modules())
    before = torch.get_rng_state()
    first = model(images, noise)
    torch.manual_seed(99)
    assert torch.equal(model(images, noise), first)
    assert not torch.allclose(model(images, noise.flip(1)), first)
    torch.set_rng_state(before)
    assert torch.equal(model.eval()(images), model(images, noise)), "none in evaluation"


def test_a_dropped_branch_adds_nothing_and_a_kept_one_is_scaled():
    model, images, _ = noisy("test_vit", model__drop_path=0.5)
    branch, kept = NoisyDropPath(0.5, model.visual._noise, 0), images
    model.visual._noise.uniform_BC = torch.tensor([[0.1], [0.6], [0.4], [0.9]])
    torch.testing.assert_close(branch(kept), kept * torch.tensor([2.0, 0, 2, 0]).view(4, 1, 1, 1))


@pytest.mark.parametrize("name", ["test_vit", "vit_pe_core_tiny_patch16_384"])
def test_patch_dropout_keeps_a_share_of_the_patches_and_its_rate_can_change(name):
    model, images, noise = noisy(name, model__patch_dropout=0.5)
    dropout = next(m for m in model.modules() if isinstance(m, NoisyPatchDropout))
    seen = []
    dropout.register_forward_hook(lambda _, __, out: seen.append((out[0] if isinstance(out, tuple) else out).shape[1]))
    first = model(images, noise)
    assert torch.equal(model(images, noise), first) and not torch.allclose(model(images, 1 - noise), first)
    model.visual.patch_dropout.rate = 0.0
    torch.testing.assert_close(model(images, noise), model.eval()(images))
    assert seen == [3, 3, 3, 5, 5], "of 4 patches and a class token"


def test_patch_dropout_keeps_rotary_positions_with_their_tokens():
    """With every patch kept, in another order, only attention's sums are in another order."""
    model, images, noise = noisy("vit_pe_core_tiny_patch16_384", model__patch_dropout=0.5)
    whole = model.eval()(images)
    model.train()
    model.visual.patch_dropout.rate = 1e-9
    torch.testing.assert_close(model(images, noise), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TINY)
def test_gradient_checkpointing_gives_the_same_gradients(name):
    model, images, noise = noisy(name, model__drop_path=0.5)
    gradients = []
    for on in (False, True):
        model.visual.grad_checkpointing = on
        model.zero_grad()
        model(images, noise).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) > 20
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain)


def test_buffers_of_a_model_from_the_meta_device_are_timms():
    for name in ("swin_tiny_patch4_window7_224", "eva02_small_patch14_336"):
        whole = build(name, TOWERS[name])
        empty = build(name, TOWERS[name], meta=True)
        empty.load_state_dict(whole.state_dict(), assign=True)
        empty.visual.restore_buffers()
        found, expected = dict(empty.named_buffers()), dict(whole.named_buffers())
        assert found.keys() == expected.keys() and len(found) > 10
        assert all(torch.equal(found[key], expected[key]) for key in expected), name


def test_normalisation_is_the_models_own_unless_set():
    plain = recipe("vit_small_patch14_dinov2", 224)
    assert plain.augment.mean == (0.485, 0.456, 0.406) and plain.augment.std == (0.229, 0.224, 0.225)
    assert [c.option for c in plain.choices] == ["augment.mean", "augment.std"]
    own = recipe("vit_small_patch14_dinov2", 224, augment__mean="0.1,0.2,0.3")
    assert own.augment.mean == (0.1, 0.2, 0.3) and own.augment.std == (0.229, 0.224, 0.225)


def test_large_models_follow_the_papers_large_recipe():
    from fastft.recipe.paper import paper_recipe

    chosen = [paper_recipe(recipe(name, 224)).name for name in ("vit_large_patch14_dinov2", "vit_base_patch16_224")]
    assert chosen == ["L/14", "B/16"]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("vit_bas_patch16_224", {}, "Did you mean 'timm/vit_base_patch16_224'"),
        ("vit_base_patch16_224.augreg_in21", {}, "Did you mean 'timm/vit_base_patch16_224.augreg_in21k'"),
        ("zzzz", {}, "See timm.list_models"),
        ("resnet18", {}, r"running statistics \(bn1.running_mean\), which depend on the micro-batch"),
        ("deit_tiny_distilled_patch16_224", {}, "no single linear head"),
        ("qwen3_vit_306m_enc", {}, "no single linear head|is not known"),
        ("vit_relpos_small_patch16_224", {}, "its own dropout"),
        ("poolformerv2_s12", {}, "no group_matcher"),
        ("test_convnext", {"model.patch_dropout": 0.5}, "has no patch_drop_rate. Leave model.patch_dropout at its default"),
        ("mixer_s32_224", {"model.drop_path": 0.1}, "shares a stochastic depth between branches"),
        ("tnt_s_patch16_224", {"model.drop_path": 0.1}, "shares a stochastic depth between branches"),
        ("test_vit", {"model.layer_scale": 1.0}, "model.layer_scale applies to fastft's own tower"),
        ("test_vit", {"model.rel_pos_bias": "true"}, "model.rel_pos_bias applies to fastft's own tower"),
        ("test_vit", {"model.image_size": 70}, "not a multiple of the patch size 16. Use 64 or 80"),
        ("test_vit", {"model.trainable_layers": 7}, "the tower has 6 blocks"),
    ],
)  # fmt: skip
def test_what_a_model_lacks_is_refused_in_one_line(name, changes, message):
    with pytest.raises(UserError, match=message) as refused, torch.device("meta"):
        build_model(recipe(name, 64, **changes))
    assert "\n" not in str(refused.value)


def test_a_shared_stochastic_depth_is_refused_where_a_model_is_trained_not_where_its_weights_are_read():
    mixer = recipe("mixer_s32_224", 64, model__drop_path=0.1)
    with pytest.raises(UserError, match="shares a stochastic depth between branches"):
        build_model(mixer)
    assert build_model(mixer, pretrained=False, arch=recipe_arch(mixer)).visual.noise_columns > 0


def test_copies_share_no_noise_with_the_model():
    model, images, noise = noisy("test_vit", model__drop_path=0.5)
    other = copy.deepcopy(model)
    model(images, noise)
    assert other.visual._noise.uniform_BC is None
    blocks = [m for m in other.modules() if isinstance(m, NoisyDropPath)]
    assert {id(m._noise) for m in blocks} == {id(other.visual._noise)}


def test_an_architecture_is_built_again_from_its_values():
    from dataclasses import asdict

    from fastft.model import arch_from_dict

    arch = recipe_arch(recipe("test_vit", 64))
    assert arch_from_dict(asdict(arch)) == arch
    with pytest.raises(ValueError, match="other dimensions"):
        arch_from_dict(asdict(arch) | {"layers": 5})
    for change, message in (
        ({"timm": "hf-hub:some/model"}, "is not known"),
        ({"image_size": 1 << 40}, "larger than 8192"),
    ):
        with pytest.raises(UserError, match=message):
            arch_from_dict(asdict(arch) | change)


def sampled_models() -> list[str]:
    """A few models of each of timm's modules, the shortest names and every so manyth, without the largest ones."""
    families: dict[str, list[str]] = {}
    for name in timm.list_models(
        exclude_filters=["*giant*", "*huge*", "*gigantic*", "*enormous*", "*xxlarge*", "*7b*", "*large*"]
    ):
        families.setdefault(timm.model_entrypoint(name).__module__, []).append(name)
    return [name for names in families.values() for name in sorted(names, key=len)[:: max(1, len(names) // 2)]]


@pytest.mark.slow
def test_every_parameter_of_models_of_all_families_gets_a_gradient():
    """An unused one would have no optimiser state, which checkpoints are checked for."""
    trained, refused = [], []
    for name in sampled_models():
        try:
            arch = load_arch(f"timm/{name}")
            model = build(name, arch.image_size, meta=True, model__freeze_conv1=False)
        except UserError as error:
            assert "\n" not in str(error)
            refused.append(name)
            continue
        with torch.device("meta"):
            model.train()(torch.empty(2, 3, arch.image_size, arch.image_size)).sum().backward()
        assert not [n for n, p in model.named_parameters() if p.grad is None], name
        assert count_flops(arch, 7).forward > 1e6
        trained.append(name)
    assert len(trained) > 20 and len(refused) > 20, "LayerNorm and BatchNorm"
