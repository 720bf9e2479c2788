"""The cost of timm's models: traced traffic agrees with the formula of the own tower, and only what a model can do is priced."""

import pytest

from fastft.cost.levers import combinations
from fastft.cost.mfu import attention_bytes, roofline_mfu, trained_parameters
from fastft.cost.pointwise import pointwise_bytes
from fastft.cost.traffic import trace_model
from fastft.machine.gpus import GPUS
from fastft.model.arch import load_open_clip_arch
from fastft.recipe import load_recipe


def timm_recipe(name: str, **changes: object):
    options = {
        "model.arch": f"timm/{name}",
        "model.weights": "random",
        "model.freeze_conv1": "false",
    } | changes
    return load_recipe("final_b16", [f"--{key}={value}" for key, value in options.items()])


def test_traced_traffic_of_a_vit_is_that_of_the_formula() -> None:
    """The own tower was written for fewer bytes: timm's block moves a quarter more."""
    options = ["--model.arch=ViT-B-16", "--model.freeze_conv1=false"]
    own, arch = load_recipe("final_b16", options), load_open_clip_arch("ViT-B-16").at(224)
    traced = trace_model(timm_recipe("vit_base_patch16_224"), "autocast")
    assert traced.trained_parameters == pytest.approx(trained_parameters(own, arch), rel=0.01)
    formula = pointwise_bytes(own, "autocast") + attention_bytes(own, arch)
    assert 1.0 <= traced.bytes_per_image / formula < 1.3


def test_the_roofline_of_frozen_layers_counts_no_backward_pass() -> None:
    whole, half = timm_recipe("test_vit"), timm_recipe("test_vit", **{"model.trainable_layers": 3})
    bytes_of = [trace_model(recipe, "autocast").bytes_per_image for recipe in (whole, half)]
    assert 0.4 < bytes_of[1] / bytes_of[0] < 0.9
    assert 0 < roofline_mfu(whole, GPUS["V100"], 8).value < 0.72


@pytest.mark.parametrize(
    ("name", "small", "sparse"),
    [("test_vit", True, True), ("test_convnext", True, False), ("hiera_tiny_224", False, False)],
)
def test_the_frontier_has_only_what_the_model_can_do(name: str, small: bool, sparse: bool) -> None:
    levers = {
        word for found in combinations(timm_recipe(name)) for lever in found.levers for word in lever.split()
    }
    assert ("px" in levers, "drop" in levers, "train" in levers) == (small, sparse, True)
