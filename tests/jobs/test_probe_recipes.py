"""The recipes for frozen DINOv2 and DINOv3 towers, from the command line, with a real pretrained tower of DINOv2's kind."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from beton_tools.base.errors import UserError
from fastft.cli import main
from fastft.export.to_timm import NAMES
from fastft.jobs.demo_files import WEIGHTS, fetch, read_backbone
from fastft.model.timm_tower import TRUNK
from fastft.recipe import load_recipe
from fastft.run.checkpoint import find_checkpoint
from fastft.run.result import read_result

pytestmark = pytest.mark.slow

TOWER, LAYERS, SIZE = "timm/vit_small_patch14_dinov2", 12, 42
RECIPES = sorted(path.stem for kind in ("probe", "fitted_dino") for path in Path("rcp").glob(f"{kind}*.yaml"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """The demo's ViT-S/14 under timm's names."""
    try:
        ours = read_backbone(fetch(WEIGHTS, Path(".cache/demo")))
    except UserError as error:
        pytest.skip(str(error))
    state = {
        "cls_token": ours["class_embedding"].view(1, 1, -1),
        "pos_embed": ours["positional_embedding"].unsqueeze(0),
        "patch_embed.proj.weight": ours["conv1.weight"],
        "patch_embed.proj.bias": torch.zeros_like(ours["class_embedding"]),  # it is in the positions
        "norm.weight": ours["ln_post.weight"],
        "norm.bias": ours["ln_post.bias"],
    }
    for name, value in ours.items():
        if name.startswith("transformer.resblocks."):
            _, _, block, part = name.split(".", 3)
            state[f"blocks.{block}.{NAMES[part]}"] = value
    path = tmp_path_factory.mktemp("tower") / "vit_small_patch14_dinov2.safetensors"
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    return path


def test_there_are_nine_of_these_recipes():
    dinov2 = ["probe_dinov2_b14", "probe_dinov2_b14_reg", "probe_dinov2_l14", "probe_dinov2_l14_reg"]
    dinov3 = ["probe_dinov3_b16", "probe_dinov3_h16_plus", "probe_dinov3_l16", "probe_dinov3_s16_plus"]
    assert ["fitted_dinov2_b14", *dinov2, *dinov3] == RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_the_command_fits_a_head_to_a_real_tower_and_trains_no_more_than_the_recipe_says(
    name, weights, tiny, tmp_path, capsys
):
    """The recipe's own tower has 86 or 304 million parameters; only its name, its weights and the image size differ here."""
    kept = ("data.train", "data.val", "data.num_classes", "train.device", "train.amp")
    changed = {"model.arch": TOWER, "model.weights": weights, "model.image_size": SIZE}
    changed |= {"optim.batch_size": 16, "optim.lr": 5e-5}  # sqrt(16 / 2048) times the recipe's
    options = [f"--{key}={value}" for key, value in ({key: tiny[key] for key in kept} | changed).items()]
    run = tmp_path / "run"
    assert main(["train", name, *options, f"--train.run_dir={run}"]) == 0, capsys.readouterr().err

    recipe, result = load_recipe(name), read_result(run)
    assert result.baseline.raw.top1 >= 80 and result.weights.top1 >= 80  # 20 crops of two photographs
    trained = load_file(find_checkpoint(run) / "model.safetensors")
    start, blocks = load_file(weights), recipe.model.trainable_layers
    assert trained[f"{TRUNK}head.weight"].shape == (2, 2 * 384)  # class token and mean of the patches
    changed_blocks = {
        int(key.split(".")[1])
        for key in start
        if key.startswith("blocks.") and not torch.equal(start[key], trained[TRUNK + key])
    }
    assert changed_blocks == set(range(LAYERS - blocks, LAYERS))
