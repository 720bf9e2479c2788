"""`fastft explain --diff`: the options that differ, and nothing else."""

import json

import pytest

from fastft.cli import main
from fastft.cost.difference import compare
from fastft.recipe import load_recipe


def test_only_what_differs_is_listed_with_accuracy_and_cost() -> None:
    values = compare(load_recipe("final_b16"), load_recipe("frugal_b16_half"))
    assert {entry["option"]: entry["values"] for entry in values["options"]} == {
        "model.trainable_layers": [None, 6], "schedule.stop_epoch": [None, 30], "train.eval_every": [1, 5],
        "train.eval_weights": ["both", "ema"],
    }  # fmt: skip
    assert values["expectation"][0] == "expected 85.7 % top-1 (paper Table 10)"
    for first, second in values["gpu_hours"].values():
        assert first > second


def test_options_on_the_command_line_apply_to_the_second_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--diff", "final_b16", "02_lr[1e-5]", "--json", "--optim.lr=0.1"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["recipes"] == ["final_b16", "lr_1e-5"]
    assert {e["option"]: e["values"] for e in values["options"]}["optim.lr"] == [6e-4, 0.1]


def test_equal_recipes_have_no_differences(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--diff", "final_b16", "06_mixup[0.0/0.0]"]) == 0
    assert "no option differs" in capsys.readouterr().out


def test_a_third_recipe_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "final_b16", "--diff", "final_b16", "final_l14"]) == 2
    assert "unrecognized argument final_l14" in capsys.readouterr().err
