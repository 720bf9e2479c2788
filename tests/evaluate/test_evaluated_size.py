"""`train.eval_image_size`: what is trained at one image size is evaluated, predicted with and exported at another."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from timm.layers import resample_abs_pos_embed

from fastft.cost.work import recipe_work
from fastft.evaluate.evaluation import evaluate_file
from fastft.evaluate.predictor import Predictor, read_image
from fastft.evaluate.trained import at_evaluated_size, load_trained
from fastft.evaluate.weight_average import average, write_average
from fastft.export.command import export_checkpoint
from fastft.model.recipe_model import build_model, recipe_arch
from fastft.model.tower import resize_positions
from fastft.recipe import load_recipe
from tests.refusals import refuses
from tests.train.runs import result_of, run

CPU = torch.device("cpu")
OPTION = "train.eval_image_size"


@pytest.fixture(scope="module")
def larger(tiny, tmp_path_factory):
    """A run that trains at 32 px and evaluates at 48, from a linear probe."""
    folder = tmp_path_factory.mktemp("larger") / "run"
    run(tiny, folder, train__eval_image_size="48", model__head_init="probe", schedule__epochs="2")
    return folder


def test_training_evaluation_and_prediction_see_images_of_this_size(tiny, larger):
    trained = load_trained(larger, CPU, "ema")
    assert trained.model.visual.positional_embedding.shape == (17, 64), "stored as they were trained: 4 x 4 patches"
    _, scored = evaluate_file(larger, tiny["data.val"], "cpu", "ema")
    stated = result_of(larger)["last"]["ema"]
    assert scored.scores.loss == pytest.approx(stated["loss"], abs=1e-6), "as the run itself evaluated it"
    read = read_image(Image.new("RGB", (64, 64)), Predictor(larger, "cpu", "ema").trained.recipe)
    assert read.tensor.shape == (3, 48, 48)


def test_the_linear_probe_is_evaluated_at_the_size_that_it_was_fitted_at(tiny, larger):
    assert load_trained(larger, CPU, "probe").recipe.evaluated_size == 32
    _, probe = evaluate_file(larger, tiny["data.val"], "cpu", "probe")
    assert probe.scores.loss == pytest.approx(result_of(larger)["baseline"]["raw"]["loss"], abs=1e-5)


def test_an_average_of_linear_probes_is_evaluated_at_their_size(tiny, larger, tmp_path):
    val = Path(tiny["data.val"])
    model, mean = average([str(larger)] * 2, [val], "cpu", soup="uniform", weights="probe", say=lambda text: None)
    write_average(mean, model, tmp_path / "average")
    read, scored = evaluate_file(tmp_path / "average", val, "cpu")
    assert read.recipe.evaluated_size == 32, "not the 48 px at which the run evaluates what it trained"
    assert scored.scores.loss == pytest.approx(result_of(larger)["baseline"]["raw"]["loss"], abs=1e-5)


def test_an_export_has_the_size_of_evaluation_and_computes_the_same(larger, tmp_path):
    trained = load_trained(larger, CPU, "ema")
    images = torch.randn(3, 3, 48, 48)
    with torch.inference_mode():
        before = trained.model(images)
        resized = at_evaluated_size(trained)
        torch.testing.assert_close(resized.model(images), before, rtol=0, atol=0)
    assert resized.model.visual.arch.image_size == resized.recipe.model.image_size == 48
    export_checkpoint(larger, "timm", tmp_path / "timm", weights="ema")
    config = json.loads((tmp_path / "timm" / "config.json").read_text())
    assert config["pretrained_cfg"]["input_size"] == [3, 48, 48]


def test_positions_of_the_same_grid_are_not_touched_and_a_smaller_one_is_timms():
    positions_ND = torch.randn(17, 8)
    assert resize_positions(positions_ND, 4) is positions_ND
    assert resize_positions(positions_ND, 6).shape == (37, 8)
    assert torch.equal(resize_positions(positions_ND, 6)[0], positions_ND[0])
    shrunk = resample_abs_pos_embed(positions_ND[None], [3, 3], [4, 4])[0]
    torch.testing.assert_close(resize_positions(positions_ND, 3), shrunk)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([f"--{OPTION}=250"], "image size 250 is not a multiple of the patch size 16. Use 240 or 256"),
        ([f"--{OPTION}=256", "--model.rel_pos_bias=true"], f"trained at. Leave out {OPTION}"),
        (
            [f"--{OPTION}=256", "--model.arch=timm/vit_tiny_patch16_224"],
            f"vit_tiny_patch16_224 is eval.* Leave out {OPTION}",
        ),
    ],
)
def test_a_size_at_which_a_tower_cannot_be_evaluated_is_refused(options, message):
    with refuses(message):
        build_model(load_recipe("final_b16", ["--model.weights=random", *options]), pretrained=False)


def test_evaluation_at_a_larger_size_is_priced():
    recipe = load_recipe("final_b16", [f"--{OPTION}=448"])
    trained, larger = (recipe_work(r, recipe_arch(r), 1000) for r in (recipe.with_option(OPTION, None), recipe))
    assert larger.train == trained.train
    assert 4 < larger.evaluate / trained.evaluate < 5, "four times the patches, and attention"
