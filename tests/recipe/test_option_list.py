"""`fastft options`: every option of the schema, with what a user needs to set it."""

import json
import runpy

from fastft.cli import main
from fastft.recipe import SECTIONS, option_fields
from fastft.recipe.option_list import list_options


def test_every_option_has_a_default_limits_and_a_meaning():
    options = list_options()
    assert [option.name for option in options] == list(option_fields())
    for option in options:
        assert option.default and option.limits and len(option.meaning) > 8, option.name
        assert not option.meaning.endswith("."), option.name


def test_a_section_an_option_and_a_name_in_any_section_can_be_chosen():
    assert {o.name.split(".")[0] for o in list_options("ema")} == {"ema"}
    assert [o.name for o in list_options("optim.lr")] == [o.name for o in list_options("lr")] == ["optim.lr"]


def test_the_values_of_the_papers_runs_are_those_of_its_logs():
    """Facts of the logs: L/14-336 was trained with batch 1,920, B/16-384 with lr 7e-4."""
    paper = {option.name: option.paper for option in list_options()}
    assert paper["optim.lr"] == "0.0006 (B/16, L/14-336), 0.0007 (B/16-384), 0.0004 (L/14)"
    assert paper["optim.batch_size"] == "2048 (B/16, B/16-384, L/14), 1920 (L/14-336)"
    assert paper["optim.weight_decay"] == "0.05"
    assert paper["train.amp"].startswith("fp16")
    assert paper["data.train"] is None and paper["train.log_every"] is None


def test_the_command_prints_all_or_refuses_with_the_nearest(capsys):
    assert main(["options"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in option_fields())
    assert all(f"{section}: " in printed for section in SECTIONS)
    assert main(["options", "optim.lr", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["default"] == "0.0006"
    assert main(["options", "weightdecay"]) == 2
    assert "did you mean 'optim.weight_decay'?" in capsys.readouterr().err


def test_the_page_of_options_is_current():
    assert runpy.run_path("docs/options_page.py")["is_current"](), "run: python docs/options_page.py"


def test_a_wrong_option_suggests_the_same_name_in_another_section(capsys):
    for override, meant in (
        ("--train.epochs=5", "schedule.epochs"), ("--model.lr=1", "optim.lr"),
        ("--optim.seed=1", "train.seed"), ("--data.batch_size=8", "optim.batch_size"), ("--ema.decai=1", "ema.decay"),
    ):  # fmt: skip
        assert main(["train", "final_b16", override]) == 2
        assert f"did you mean --{meant}?" in capsys.readouterr().err
