"""Values that follow from the number of images: the table of the rules, and the paper's recipe at ImageNet's size."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from beton_tools.base.errors import UserError
from fastft.choose.automatic import RULES, resolve
from fastft.cost.explanation import explain
from fastft.optim import decay_for_batch
from fastft.optim.ema import ema_warnings
from fastft.optim.schedule import build_schedule, short_run_warnings
from fastft.recipe import Choice, FinalRecipe, Recipe, differences, load_recipe, option_fields, recipe_from_dict
from fastft.recipe.constants import CLIP_MEAN, CLIP_STD
from fastft.recipe.training_images import Images

# images: batch, epochs, steps, warm-up steps, EMA horizon in steps, lr, crop scale, erase probability
TABLE = {
    100: (32, 334, 1_002, 200, 160, 5e-4, 0.5, 0),
    1_000: (32, 50, 1_550, 310, 248, 5e-4, 0.5, 0),
    9_000: (64, 50, 7_000, 1_400, 1_120, 6e-4, 0.5, 0),
    100_000: (1_024, 50, 4_850, 970, 776, 4.24e-4, 0.08, 0.25),
    1_281_167: (2_048, 50, 31_250, 6_250, 5_000, 6e-4, 0.08, 0.25),
}
IMAGES = Images("photographs", 9_000, 1_000, 1_000)
LARGE = "--model.arch=ViT-L-14-quickgelu"


def decided(reference: str, options: Sequence[str] = ()) -> Recipe:
    return resolve(load_recipe(reference, options))


def horizon(recipe: Recipe) -> float:
    decay = decay_for_batch(recipe.ema.decay, recipe.optim.batch_size, recipe.ema.reference_batch)
    return 1 / (1 - decay)


@pytest.mark.parametrize("images", TABLE)
def test_the_values_for_a_number_of_images_are_those_of_the_table(images):
    recipe = decided("photos", [f"--data.train_size={images}"])
    batch, epochs, steps, warmup, ema, lr, scale, erase = TABLE[images]
    schedule = build_schedule(recipe, recipe.steps_per_epoch())
    assert (recipe.optim.batch_size, recipe.epochs, schedule.total_steps) == (batch, epochs, steps)
    assert schedule.warmup_steps == warmup
    assert horizon(recipe) == pytest.approx(ema)
    assert recipe.optim.lr == pytest.approx(lr, rel=0.01)
    assert (recipe.optim.layer_decay, recipe.optim.clip_grad) == ((0.7, 1) if images < 20_000 else (0.6, None))
    assert (recipe.augment.scale_min, recipe.augment.erase_prob) == (scale, erase)
    assert ema_warnings(recipe) == []


@pytest.mark.parametrize(("paper", "options"), [("final_b16", []), ("final_l14", [LARGE])])
def test_with_imagenets_images_it_is_exactly_the_papers_recipe(paper, options):
    """`data.hold_out_beton` has no effect where `data.val` names ImageNet's validation images."""
    found = differences(load_recipe(paper), decided("photos", options))
    expected = {"schedule.warmup", "ema.horizon", "data.hold_out_beton"}
    assert {key for key in found if not key.startswith("about.")} == expected


@pytest.mark.parametrize(("options", "values"), [([], (5e-4, 0.7, 1)), ([LARGE], (3.33e-4, 0.75, 1))])
def test_few_images_move_the_tower_further_but_not_in_very_few_steps(options, values):
    for epochs in (10, 200):
        optim = decided("photos", ["--data.train_size=400", f"--schedule.epochs={epochs}", *options]).optim
        assert (optim.lr, optim.layer_decay, optim.clip_grad) == pytest.approx(values, rel=0.01)
    given = decided("photos", ["--data.train_size=400", "--optim.clip_grad=none", "--optim.lr=1e-4"]).optim
    assert (given.lr, given.layer_decay, given.clip_grad) == (1e-4, 0.7, None)
    for epochs, steps in ((1, 12), (3, 36), (6, 72)):
        few = decided("photos", ["--data.train_size=400", f"--schedule.epochs={epochs}"])
        assert few.optim.lr == pytest.approx(min(1, steps / 70) * 5e-4)


def test_fewer_images_than_the_smallest_batch_are_one_batch():
    recipe = decided("photos", ["--data.train_size=29"])
    reason = next(choice.reason for choice in recipe.choices if choice.option == "optim.batch_size")
    assert recipe.optim.batch_size == 29 and reason.startswith("all 29 training images")


def test_the_training_files_images_count_not_the_recipes():
    recipe = resolve(load_recipe("photos"), IMAGES)
    assert recipe == decided("photos", ["--data.train_size=9000"])
    counted, *choices = recipe.choices
    assert counted.option == "data.num_classes"
    assert tuple(choices) == decided("photos", ["--data.train_size=9000"]).choices


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("optim.batch_size", 256),
        ("schedule.epochs", 7),
        ("optim.lr", 0.01),
        ("optim.layer_decay", 0.9),
        ("schedule.warmup_epochs", 3),
        ("schedule.warmup", 0.5),
        ("ema.decay", 0),
        ("ema.decay", 0.5),
        ("ema.horizon", 0.01),
        ("augment.scale_min", 0.3),
        ("augment.erase_prob", 0.1),
    ],
)
def test_the_users_own_value_wins(option, value):
    recipe = resolve(load_recipe("photos", [f"--{option}={value}"]), IMAGES)
    assert recipe.flat()[option] == value
    assert option not in {choice.option for choice in recipe.choices}


def test_later_rules_use_the_users_values():
    recipe = decided("photos", ["--data.train_size=9000", "--optim.batch_size=512", "--schedule.epochs=10"])
    assert recipe.optim.lr == pytest.approx(6e-4)  # 6.7 times 3e-4, but not more than the paper's
    assert build_schedule(recipe, recipe.steps_per_epoch()).warmup_steps == 34  # a fifth of 170
    assert horizon(recipe) == pytest.approx(27)  # 0.16 of them


def test_every_option_that_accepts_auto_has_a_rule_or_is_read_from_the_file():
    accepting = {name for name, field in option_fields().items() if field.metadata["auto"]}
    assert accepting == {*RULES, "data.num_classes"}


def test_auto_is_refused_where_there_is_no_rule():
    with pytest.raises(UserError, match=r"optim\.weight_decay is 'auto'. It must be a number >= 0$"):
        decided("photos", ["--optim.weight_decay=auto"])
    with pytest.raises(UserError, match=r"optim\.lr is 'automatic'. It must be a number >= 0 or auto$"):
        decided("photos", ["--optim.lr=automatic"])


def test_a_share_is_stored_with_what_it_means():
    recipe = decided("photos", ["--data.train_size=9000"])
    assert recipe_from_dict("photos", recipe.as_dict()) == FinalRecipe.of(recipe)


def test_the_values_that_a_run_was_started_with_are_used_again():
    recipe = load_recipe("photos", ["--data.train_size=9000", "--optim.batch_size=32"])
    stored = {"schedule.epochs": 12, "optim.batch_size": 1}
    again = resolve(recipe, None, {name: Choice(name, value, "measured") for name, value in stored.items()})
    assert [choice.reason for choice in again.choices if choice.option in stored] == ["measured"]
    assert (again.schedule.epochs, again.optim.batch_size) == (12, 32)
    assert again.ema.decay == pytest.approx(1 - 1 / 540)  # 0.16 of 12 * 281 steps


@pytest.mark.parametrize(
    ("images", "checkpoint", "evaluation"),
    [(40, 100, 50), (100, 33, 17), (1_000, 3, 2), (9_000, 1, 1), (1_281_167, 1, 1)],
)
def test_short_epochs_do_not_each_end_with_a_checkpoint_and_an_evaluation(images, checkpoint, evaluation):
    train = decided("photos", [f"--data.train_size={images}"]).train
    assert (train.checkpoint_epochs, train.eval_every) == (checkpoint, evaluation)
    assert decided("photos", [f"--data.train_size={images}", "--train.eval_every=3"]).train.eval_every == 3


def test_explain_gives_every_choice_with_its_reason(capsys):
    from fastft.cli import main

    options = ["--data.train_size=2000", "--schedule.budget=5m"]
    values = explain(decided("photos", options))
    assert {choice.option for choice in values.choices} == set(RULES)
    # fp16: the recipe of a GPU, explained on any machine
    assert main(["explain", "photos", "--data.train_size=2000", "--train.amp=fp16"]) == 0
    assert "on this machine's" in " ".join(capsys.readouterr().out.split())
    assert main(["explain", "photos", *options, "--train.amp=fp16"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for choice in values.choices:
        assert choice.option in shown and " ".join(choice.reason.split()) in shown


def test_an_ema_that_stays_close_to_the_initial_weights_is_a_warning_in_every_recipe():
    small = ["--data.train_size=9000", "--optim.batch_size=256"]
    (warning,) = explain(decided("final_b16", small)).warnings
    assert "95.7%" in warning and "--ema.horizon=auto" in warning
    assert explain(decided("final_b16", [*small, "--ema.horizon=auto"])).warnings == []
    assert explain(decided("final_b16", [*small, "--ema.decay=0"])).warnings == []
    short = ["--data.train_size=9000", "--schedule.stop_epoch=5"]
    (warning,) = explain(decided("photos", short)).warnings
    assert "53.5%" in warning and "Set --ema.horizon=0.016, a fraction of the whole schedule" in warning
    assert explain(decided("photos", [*short, "--ema.horizon=0.016"])).warnings == []
    assert explain(load_recipe("final_b16")).warnings == []


def test_the_normalisation_of_a_towers_file_is_taken_and_printed_unless_it_is_given(tmp_path):
    file = tmp_path / "tower.json"
    tower = json.loads(Path("rcp/demo_vit_s14.json").read_text())
    assert load_recipe("demo").augment.mean == tuple(tower["preprocess_cfg"]["mean"]) != CLIP_MEAN
    file.write_text(json.dumps(tower | {"preprocess_cfg": {"mean": [0.5, 0.5, 0.5]}}))
    recipe = decided("photos", [f"--model.arch={file}"])
    assert (recipe.augment.mean, recipe.augment.std) == ((0.5, 0.5, 0.5), CLIP_STD)
    assert Choice("augment.mean", (0.5, 0.5, 0.5), f"preprocess_cfg of {file}") in recipe.choices
    assert decided("photos", [f"--model.arch={file}", "--augment.mean=0,0,0"]).augment.mean == (0, 0, 0)
    file.write_text(json.dumps(tower | {"preprocess_cfg": {"std": [0, 1, 1]}}))
    with pytest.raises(UserError, match=r"preprocess_cfg of .*augment\.std is .*It must be three numbers"):
        decided("photos", [f"--model.arch={file}"])


@pytest.mark.parametrize(
    ("options", "warned"),
    [(["--epochs=3"], True), (["--epochs=4"], False), (["--epochs=3", "--model.head_init=small"], False)],
)
def test_a_run_of_few_steps_from_a_linear_probe_is_warned_of(options, warned):
    recipe = decided("photos", ["--data.train_size=320", *options])  # 10 steps an epoch
    assert [line.startswith("30 steps are few") for line in short_run_warnings(recipe)] == [True] * warned
