"""Recipes: what is written is what runs, every mistake is one line, and `fastft options` lists every option."""

import json
import runpy
from pathlib import Path

import pytest
import yaml

from beton_tools.base.errors import UserError
from fastft.cli import main
from fastft.recipe import SECTIONS, FinalRecipe, load_recipe, option_fields, parse_duration, recipe_from_dict
from fastft.recipe.option_list import list_options
from tests.refusals import refuses

RECIPES = Path("rcp")


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_own_values_override_the_base_and_flags_override_both(tmp_path):
    write(tmp_path, "base.yaml", "optim: {lr: 1e-3, layer_decay: 0.7}\nschedule: {epochs: 30, warmup_epochs: 5}\n")
    path = write(tmp_path, "mine.yaml", "extends: base.yaml\noptim: {lr: 2e-3}\n")
    recipe = load_recipe(path, ["--schedule.epochs=12", "--model.trainable_layers=none", "--data.train=x.beton"])
    assert (recipe.name, recipe.optim.lr, recipe.optim.layer_decay) == ("mine", 2e-3, 0.7)
    assert (recipe.schedule.epochs, recipe.schedule.warmup_epochs, recipe.data.train) == (12, 5, "x.beton")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: {learning_rate: 1}", "unknown option 'optim.learning_rate'. Did you mean 'optim.lr'"),
        ("optimizer: {lr: 1}", "Did you mean 'optim.lr'"),
        ("optim: {lr: fast}", "optim.lr is 'fast'. It must be a number >= 0"),
        ("optim: {batch_size: 12.5}", "It must be a whole number >= 1"),
        ("optim: {batch_size: true}", "It must be a whole number >= 1"),
        ("model: {freeze_conv1: maybe}", "It must be true or false"),
        ("augment: {crop: centre}", "It must be one of rrc, src"),
        ("augment: {mean: [0.5, 0.5]}", "It must be three numbers"),
        ("schedule: {epochs: 5, warmup_epochs: 5}", "must be smaller than schedule.epochs"),
        ("augment: {scale_min: 0.5, scale_max: 0.2}", "Swap them"),
        ("optim: {lr: [1", "not valid YAML"),
        ("extends: nowhere.yaml", "does not exist"),
        ("extends: bad.yaml", "in a circle"),
        ("extend: final_b16.yaml", "Did you mean 'extends'"),
        ("zzz: 1", "Valid sections: .*extends"),
        ("optim:", "'optim' must hold 'key: value' lines$"),
        ("optim: {lr: 1e-3, lr: 2e-3}", "the key 'lr' appears twice"),
        ("optim: {lr: 1e-3}\nema: {decay: 0.9}\noptim: {beta1: 0.8}", "the key 'optim' appears twice"),
        ("train: {step: sometimes}", "train.step is .sometimes.. It must be one of auto, measure, eager"),
        ("optim: {beta1: 1}", "It must be a number >= 0 and < 1"),
        ("augment: {mean: [1e38, 0.5, 0.5]}", "It must be three numbers >= -10 and <= 10"),
        ("augment: {std: [0.5, 0.5, 0]}", "It must be three numbers >= 0.001 and <= 10"),
        ("train: {seed: 9223372036854775808}", "It must be a whole number >= 0 and <= 9223372036854775807"),
        ("model: {rel_pos_bias: true, patch_dropout: 0.5}", "needs all patches"),
    ],
)
def test_mistakes_are_one_line(tmp_path, text, message):
    with refuses(message):
        load_recipe(write(tmp_path, "bad.yaml", text))


@pytest.mark.parametrize("text", ["on", "off", "007", "1e3", "2026-11-25", "a: b #1", "[x]", "'x'", "12:30"])
def test_a_text_is_what_was_typed(tmp_path, text):
    path = write(tmp_path, "r.yaml", "about: {source: x}")
    assert load_recipe(path, [f"--about.source={text}"]).about.source == text


def test_yaml_makes_no_numbers_and_dates_of_texts_nor_texts_of_numbers(tmp_path):
    """YAML 1.1 reads 6e-4 as a text."""
    text = "train: {run_dir: 007}\ndata: {train: 2026-11-25, val: 12:30}\noptim: {lr: 6e-4}"
    recipe = load_recipe(write(tmp_path, "r.yaml", text))
    assert recipe.optim.lr == 6e-4
    assert (recipe.train.run_dir, recipe.data.train, recipe.data.val) == ("007", "2026-11-25", "12:30")


def test_values_are_read_the_same_from_a_file_and_a_flag(tmp_path):
    values = {
        "model": {"freeze_conv1": "no", "trainable_layers": "~"}, "optim": {"clip_grad": "", "batch_size": "1e3"},
        "augment": {"mean": "[0.1, 0.2, 3e-1]"}, "train": {"seed": "9007199254740993"}, "data": {"val": "null"},
    }  # fmt: skip
    text = "".join(f"{s}:\n" + "".join(f"  {k}: {v}\n" for k, v in entries.items()) for s, entries in values.items())
    file = load_recipe(write(tmp_path, "r.yaml", text))
    flags = [f"--{s}.{k}={v}" for s, entries in values.items() for k, v in entries.items()]
    assert load_recipe(write(tmp_path, "r.yaml", "about: {}"), flags) == file
    assert (file.model.freeze_conv1, file.model.trainable_layers, file.optim.clip_grad) == (False, None, None)
    assert (file.augment.mean, file.data.val) == ((0.1, 0.2, 0.3), None)
    assert (file.train.seed, file.optim.batch_size) == (2**53 + 1, 1000)


def test_overrides_may_be_a_dict_flat_nested_or_by_short_names(tmp_path):
    flags = ["--optim.lr=0.0002", "--optim.batch_size=64", "--data.train=pics", "--model.freeze_conv1=false"]
    flags.append("--augment.mean=0.1,0.2,0.3")
    expected = load_recipe("photos", flags)
    freeze, mean = {"model.freeze_conv1": False}, {"augment": {"mean": (0.1, 0.2, 0.3)}}
    for options in (
        {"lr": 2e-4, "batch_size": 64, "data": Path("pics")},
        {"lr": "2e-4", "batch-size": "64", "data.train": "pics"},
        {"optim": {"lr": 2e-4, "batch_size": 64}, "data": {"train": "pics"}},
    ):
        assert load_recipe("photos", {**options, **freeze, **mean}) == expected
    assert load_recipe("photos", ["--lr=0.0002", "--batch-size=64", "--data=pics", *flags[3:]]) == expected
    assert load_recipe("photos", {"val_data": None}).data.val is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": "fast"}, "lr='fast': optim.lr is 'fast'. It must be a number"),
        ({"optim": {"rl": 1}}, "unknown option 'optim.rl'. Did you mean 'optim.lr'"),
        ({"epoch": 5}, "unknown option 'epoch'. Did you mean 'schedule.epochs'"),
        ({"optim": 3}, "'optim' must hold 'key: value' lines"),
        ({"lr": [1, 2]}, "optim.lr is \\[1, 2\\]"),
        ({5: 5}, "unknown option '5'"),
        ({"lr": 1e-4, "optim": {"lr": 2e-4}}, "optim.lr is given twice"),
    ],
)
def test_a_wrong_entry_of_a_dict_is_named(options, message):
    with pytest.raises(UserError, match=message):
        load_recipe("final_b16", options)


def test_a_recipe_survives_its_own_dictionary():
    recipe = load_recipe(RECIPES / "final_l14_336.yaml")
    assert recipe_from_dict(recipe.name, yaml.safe_load(yaml.safe_dump(_lists(recipe.as_dict())))) == FinalRecipe.of(
        recipe
    )


def _lists(value):
    if isinstance(value, dict):
        return {k: _lists(v) for k, v in value.items()}
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("45m", 2700), ("1.5h", 5400), (" 2d ", 172_800), ("0.5s", 0.5)]
)
def test_durations_are_seconds(text, seconds):
    assert parse_duration(text, "--budget") == seconds


@pytest.mark.parametrize("text", ["", "2", "h", "-1h", "0m", "1 hour", "1h30m", "nan", "infh", "1e3s"])
def test_other_durations_are_refused(text):
    with pytest.raises(UserError, match="--budget is"):
        parse_duration(text, "--budget")


def test_every_option_has_a_default_limits_and_a_meaning():
    options = list_options()
    assert [option.name for option in options] == list(option_fields())
    for option in options:
        assert option.default and option.limits and len(option.meaning) > 8, option.name
        assert not option.meaning.endswith("."), option.name


def test_a_section_an_option_and_a_name_in_any_section_can_be_chosen():
    assert {o.name.split(".")[0] for o in list_options("ema")} == {"ema"}
    assert [o.name for o in list_options("optim.lr")] == [o.name for o in list_options("lr")] == ["optim.lr"]


def test_the_command_prints_all_or_refuses_with_the_nearest(refused, capsys):
    assert main(["options"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in option_fields())
    assert all(f"{section}: " in printed for section in SECTIONS)
    assert main(["options", "optim.lr", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["default"] == "0.0006"
    assert "Did you mean 'optim.weight_decay'?" in refused(["options", "weightdecay"])


def test_the_page_of_options_is_current():
    assert runpy.run_path("docs/options_page.py")["is_current"](), "run: python docs/options_page.py"
