"""The training step keeps to its budget of memory traffic."""

import json
from collections import Counter
from dataclasses import astuple

import pytest

from fastft.cost.traffic import KERNELS, image_traffic, stored_traffic, trace_image, traced_ops, traffic_key
from fastft.model.recipe_model import recipe_arch
from fastft.recipe import Recipe, load_recipe
from fastft.recipe.recipe_file import recipe_names

GB = 1e9
ELEMENTS = 256 * 197 * 768  # of one layer's tokens: 256 images, B/16 at 224 px


def timm_recipe(name: str, *options: str) -> Recipe:
    own = [f"--model.arch=timm/{name}", "--model.weights=random", "--model.freeze_conv1=false"]
    return load_recipe("final_b16", [*own, *options])


def step_traffic(recipe: Recipe, path: str) -> dict[tuple[str, str], list[int]]:
    """Bytes of each call for 256 images by operation and direction, without attention kernels."""
    ops = traced_ops(recipe, path, recipe_arch(recipe))
    return {key: calls for key, calls in ops.items() if "attention" not in key[0]}


def test_budgets_and_counts_of_b16_at_224_px_and_256_images():
    """Counted by hand from the shapes: an activation reads and writes half precision, autocast's LayerNorms fp32."""
    autocast, half = (step_traffic(load_recipe("rcp/final_b16.yaml"), path) for path in ("autocast", "half"))
    # 112.6 with QuickGELU in three passes and concatenated qkv gradients
    assert sum(map(sum, autocast.values())) <= 90 * GB and sum(map(sum, half.values())) <= 58 * GB
    silu, norms = autocast["silu", "forward"], half["native_layer_norm", "forward"]
    assert silu == 12 * [2 * 2 * 4 * ELEMENTS]
    assert len(norms) == 26  # two in each block, ln_pre, fc_norm
    assert sum(norms) == pytest.approx(26 * 2 * 2 * ELEMENTS, rel=0.01)
    assert sum(autocast["add", "forward"]) == pytest.approx(24 * (4 + 2 + 4) * ELEMENTS, rel=0.02)


@pytest.mark.parametrize(
    ("path", "kinds"),
    [
        # forward: 12 parameters and 2 LayerNorm outputs; backward: gradients of the former and of 2 branches' outputs, 2 gains
        ("autocast", {("_to_copy", "forward"): 14, ("_to_copy", "backward"): 16, ("cat", "backward"): 2}),
        # the fp32 gradients of 12 parameters
        ("half", {("_to_copy", "backward"): 12}),
    ],
)
def test_a_block_copies_nothing_and_casts_only_what_it_must(path, kinds, tmp_path):
    """Measured by what one more block adds. `cat` joins the weight's and the bias's gradients, not the tokens'."""
    added: Counter = Counter()
    for layers, sign in ((2, -1), (3, 1)):
        vision = {"image_size": 224, "layers": layers, "width": 768, "patch_size": 16}
        arch = tmp_path / f"{layers}.json"
        arch.write_text(json.dumps({"embed_dim": 512, "quick_gelu": True, "vision_cfg": vision}))
        for key, calls in step_traffic(load_recipe("rcp/final_b16.yaml", [f"--model.arch={arch}"]), path).items():
            added[key] += sign * len(calls)
    copying = ("cat", "clone", "contiguous", "copy_", "stack", "_to_copy")
    assert {key: calls for key, calls in added.items() if calls and key[0] in copying} == kinds


def test_stored_traffic_covers_all_recipes_and_is_what_a_trace_counts():
    """Traced anew for two of them; `python benchmarks/tables.py --check` traces all."""
    for recipe in map(load_recipe, recipe_names()):
        assert {traffic_key(recipe, path) for path in KERNELS} <= stored_traffic().keys()
    for name, path in (("final_b16", "autocast"), ("quick_l14_half", "half")):
        traced = trace_image(load_recipe(name), path)
        assert stored_traffic()[traffic_key(load_recipe(name), path)] == pytest.approx(astuple(traced))


def test_traffic_of_timms_vit_is_that_of_fastfts_tower_or_more():
    """The own tower was written for fewer bytes: timm's block moves a quarter more."""
    own = load_recipe("final_b16", ["--model.arch=ViT-B-16", "--model.freeze_conv1=false"])
    ours, timms = (image_traffic(r, "autocast") for r in (own, timm_recipe("vit_base_patch16_224")))
    assert timms.trained_parameters == pytest.approx(ours.trained_parameters, rel=0.01)
    assert 1.0 <= timms.bytes_per_image / ours.bytes_per_image < 1.3


def test_frozen_layers_of_timms_models_have_no_backward_pass():
    whole, half = timm_recipe("test_vit"), timm_recipe("test_vit", "--model.trainable_layers=3")
    bytes_of = [image_traffic(recipe, "autocast").bytes_per_image for recipe in (whole, half)]
    assert 0.4 < bytes_of[1] / bytes_of[0] < 0.9
