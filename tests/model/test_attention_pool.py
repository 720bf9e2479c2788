"""`model.pool=attention`: an attentive probe's pooling."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from beton_tools.base.errors import UserError
from fastft.model.attention_pool import AttentionPool
from fastft.model.recipe_model import build_model
from fastft.recipe import load_recipe
from fastft.run.checkpoint import find_checkpoint
from tests.train.runs import run

WIDTH, HEADS = 64, 4
FROZEN = {"model__pool": "attention", "model__trainable_layers": "0", "model__head_init": "probe"}


def test_it_is_attention_from_one_learned_query():
    """It equals `nn.MultiheadAttention` with projected keys and the same query for all images."""
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(WIDTH, HEADS, bias=False, batch_first=True)
    theirs.out_proj.weight.data = torch.eye(WIDTH)
    query_D, tokens_BND = torch.randn(WIDTH), torch.randn(3, 7, WIDTH)
    to_query, to_key, to_value = theirs.in_proj_weight.chunk(3)
    ours = AttentionPool(WIDTH, HEADS)
    with torch.no_grad():
        own_HC, keys_HCD = (to_query @ query_D).view(HEADS, -1), to_key.view(HEADS, -1, WIDTH)
        ours.queries.copy_(torch.einsum("hc,hcd->hd", own_HC, keys_HCD) / (WIDTH // HEADS) ** 0.5)
        ours.values.copy_(to_value)
        want, weights = theirs(
            query_D.expand(3, 1, WIDTH), tokens_BND, tokens_BND, need_weights=True, average_attn_weights=False
        )
        torch.testing.assert_close(ours(tokens_BND), want[:, 0])
        torch.testing.assert_close(ours.weights(tokens_BND), weights[:, :, 0])


@pytest.mark.parametrize("arch", ["ViT-B-16", "timm/test_vit"])
def test_untrained_it_is_the_mean_of_the_patches(arch):
    options = [f"--model.arch={arch}", "--model.weights=random", "--model.freeze_conv1=false", "--data.num_classes=5"]
    images = torch.rand(2, 3, 160, 160)

    def pooled(pool: str) -> torch.Tensor:
        recipe = load_recipe("final_b16", [*options, "--model.image_size=160", f"--model.pool={pool}"])
        with torch.no_grad():
            return build_model(recipe).eval().pooled(images)

    both = pooled("class+patches")
    mean = (
        pooled("patches") if arch == "ViT-B-16" else both[:, both.shape[1] // 2 :]
    )  # timm's own reads the class token
    torch.testing.assert_close(pooled("attention"), mean)


@pytest.mark.parametrize("name", ["vit_base_patch16_siglip_224", "convnext_tiny"])
def test_models_without_such_tokens_are_refused(name):
    options = [f"--model.arch=timm/{name}", "--model.weights=random", "--model.pool=attention"]
    with torch.device("meta"), pytest.raises(UserError, match=r"Set --model\.pool=patches, which pools as timm does"):
        build_model(load_recipe("final_b16", options))


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("attentive") / "run"
    return folder, run(tiny, folder, **FROZEN)


def test_with_a_frozen_tower_only_pooling_and_head_are_trained_from_the_linear_probe(tiny, trained):
    folder, result = trained
    after = load_file(find_checkpoint(folder) / "model.safetensors")
    before = build_model(load_recipe(folder / "recipe.yaml", ["--model.head=none"])).state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {name for name in after if not name.startswith("visual.")}
    assert {"attention_pool.queries", "attention_pool.values"} < changed
    assert result["baseline"]["raw"]["top1"] > 70  # the linear probe


def test_a_run_that_starts_from_it_keeps_its_pooling(tiny, trained, tmp_path):
    folder, _ = trained
    chosen = {
        "model__weights": str(find_checkpoint(folder)),
        "model__head_init": "probe",
    }  # the run itself chose its probe
    run(tiny, tmp_path / "run", **chosen, schedule__stop_epoch="0")
    recipe = load_recipe(tmp_path / "run/recipe.yaml", ["--model.head=none"])
    started, stored = build_model(recipe).state_dict(), load_file(recipe.model.weights)
    assert recipe.model.pool == "attention" and str(folder) in recipe.model.weights
    assert stored["attention_pool.queries"].any()
    assert all(torch.equal(started[name], stored[name]) for name in stored if not name.startswith("head."))
