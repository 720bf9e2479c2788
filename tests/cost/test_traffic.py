"""The training step keeps to its budget of memory traffic."""

import json
from collections import Counter
from dataclasses import astuple
from unittest import mock

import pytest

from fastft.cost.gpu_memory import state_bytes
from fastft.cost.traffic import KERNELS, count_traffic, image_traffic, stored_traffic, trace_image, traffic_key
from fastft.model import Tower, linear
from fastft.model.recipe_model import recipe_arch
from fastft.recipe import Recipe, load_recipe
from fastft.recipe.recipe_file import recipe_names

GB = 1e9
ELEMENTS = 256 * 197 * 768  # of one layer's tokens: 256 images, B/16 at 224 px


def timm_recipe(name: str, *options: str) -> Recipe:
    own = [f"--model.arch=timm/{name}", "--model.weights=random", "--model.freeze_conv1=false"]
    return load_recipe("final_b16", [*own, *options])


def step_traffic(recipe: Recipe, path: str, *, fused: bool = False) -> dict[tuple[str, str], list[int]]:
    """Bytes of each call for 256 images by operation and direction, without attention kernels."""
    with mock.patch.object(Tower, "fused", fused):
        ops = count_traffic(recipe, path, recipe_arch(recipe)).calls
    return {key: calls for key, calls in ops.items() if "attention" not in key[0]}


def test_budgets_and_counts_of_b16_at_224_px_and_256_images():
    """Counted by hand from the shapes: an activation reads and writes half precision, autocast's LayerNorms fp32."""
    autocast, half = (step_traffic(load_recipe("rcp/final_b16.yaml"), path) for path in ("autocast", "half"))
    # 112.6 with QuickGELU in three passes and concatenated qkv gradients
    assert sum(map(sum, autocast.values())) <= 75 * GB and sum(map(sum, half.values())) <= 58 * GB
    silu, norms = autocast["silu", "forward"], half["native_layer_norm", "forward"]
    assert silu == 12 * [2 * 2 * 4 * ELEMENTS]
    assert len(norms) == 26  # two in each block, ln_pre, fc_norm
    assert sum(norms) == pytest.approx(26 * 2 * 2 * ELEMENTS, rel=0.01)
    assert sum(autocast["add", "forward"]) == pytest.approx(24 * (4 + 2 + 4) * ELEMENTS, rel=0.02)


def test_fused_kernels_move_a_fifth_less_in_57_launches():
    """The last block's activation and sum are PyTorch's (docs/step.md)."""
    with mock.patch.object(linear, "biased_silu", wraps=linear.biased_silu) as activations:
        fused = step_traffic(load_recipe("rcp/final_b16.yaml"), "half", fused=True)
    sums, gradients = fused["add_norm", "forward"], fused["silu_backward", "backward"]
    assert len(sums) + len(fused["add_norm_backward", "backward"]) + activations.call_count == 57
    assert sum(map(sum, fused.values())) <= 40 * GB
    assert len(sums) == 23 and sum(sums) == pytest.approx(23 * 4 * 2 * ELEMENTS, rel=0.01)
    assert len(gradients) == 12 and sum(gradients) == pytest.approx(12 * 3 * 4 * 2 * ELEMENTS, rel=0.01)


@pytest.mark.parametrize(
    ("path", "kinds"),
    [
        # forward: 12 parameters, and 2 LayerNorm inputs by `copy_`; backward: gradients of the former and of 2 branches' outputs
        (
            "autocast",
            {
                ("_to_copy", "forward"): 12,
                ("copy_", "forward"): 2,
                ("_to_copy", "backward"): 14,
                ("cat", "backward"): 2,
            },
        ),
        ("half", {}),  # `_foreach_copy_` casts all gradients at once
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


def test_memory_per_image_is_what_a_step_on_a_card_was_seen_to_allocate():
    """B/16, 256 images: the allocator of PyTorch's CUDA build reports 17.50 GB (autocast) and 17.28 (half), state included."""
    recipe, images = load_recipe("final_b16", ["--model.freeze_conv1=false"]), 256
    for path, seen in (("autocast", 17.50), ("half", 17.28)):
        traced = trace_image(recipe, path)
        state = state_bytes(traced.parameters, traced.trained_parameters, ema=True, half=path == "half")
        gradients = (4 + 2 * (path == "half")) * traced.trained_parameters  # come as activations go
        assert state - gradients + images * traced.kept_bytes_per_image == pytest.approx(seen * GB, rel=0.04)


def test_checkpointed_blocks_keep_a_quarter_of_the_memory_per_image():
    plain, checkpointed = (
        image_traffic(load_recipe("final_b16", [f"--train.grad_checkpointing={on}"]), "autocast")
        for on in (False, True)
    )
    assert 0.2 < checkpointed.kept_bytes_per_image / plain.kept_bytes_per_image < 0.3


def test_stored_traffic_covers_all_recipes_and_is_what_a_trace_counts():
    """Traced anew for two of them; `python benchmarks/tables.py --check` traces all."""
    for recipe in map(load_recipe, recipe_names()):
        assert {traffic_key(recipe, path) for path in KERNELS} <= stored_traffic().keys()
    for name, path in (("final_b16", "autocast"), ("quick_l14_half", "half")):
        traced = trace_image(load_recipe(name), path)
        assert stored_traffic()[traffic_key(load_recipe(name), path)] == pytest.approx(astuple(traced))


def test_traffic_of_timms_vit_is_that_of_fastfts_tower_or_more():
    """The own tower was written for fewer bytes: timm's block moves a third more."""
    own = load_recipe("final_b16", ["--model.arch=ViT-B-16", "--model.freeze_conv1=false"])
    ours, timms = (image_traffic(r, "autocast") for r in (own, timm_recipe("vit_base_patch16_224")))
    assert timms.trained_parameters == pytest.approx(ours.trained_parameters, rel=0.01)
    assert 1.0 <= timms.bytes_per_image / ours.bytes_per_image < 1.45


def test_frozen_layers_of_timms_models_have_no_backward_pass():
    whole, half = timm_recipe("test_vit"), timm_recipe("test_vit", "--model.trainable_layers=3")
    bytes_of = [image_traffic(recipe, "autocast").bytes_per_image for recipe in (whole, half)]
    assert 0.4 < bytes_of[1] / bytes_of[0] < 0.9
