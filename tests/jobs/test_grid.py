"""Several values of an option on the command line are a sweep: a folder per run with a name that says what it is."""

import json
from pathlib import Path

import pytest

from fastft.cli import main
from fastft.recipe import load_recipe
from tests.train.runs import logged

LRS = ("1e-4", "3e-3")


@pytest.fixture(scope="module")
def command(tiny: dict[str, str]) -> list[str]:
    values = {k: v for k, v in tiny.items() if k != "optim.lr"} | {"schedule.epochs": "2"}
    return ["sweep", "final_b16", *(f"--{k}={v}" for k, v in values.items()), f"--optim.lr={','.join(LRS)}"]


@pytest.fixture(scope="module")
def swept(command, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("grid") / "lrs"
    assert main([*command, f"--out={out}"]) == 0
    return out


def test_each_value_is_a_run_whose_folder_says_it(swept):
    assert {p.name for p in swept.iterdir() if p.is_dir()} == {f"lr={lr}" for lr in LRS}
    for lr in LRS:
        assert load_recipe(swept / f"lr={lr}" / "recipe.yaml").optim.lr == float(lr)
    rows = json.loads((swept / "results.json").read_text())["rows"]
    assert [(row["label"], row["error"]) for row in rows] == [(f"lr={lr}", None) for lr in LRS]
    page = (swept / "comparison.html").read_text()
    assert all(f"lr={lr}" in page for lr in LRS) and "optim.lr" in page


def test_the_same_command_trains_nothing_again_and_prints_the_comparison(swept, command, capsys):
    steps = {lr: len(logged(swept / f"lr={lr}", "train")) for lr in LRS}
    assert main([*command, f"--out={swept}"]) == 0
    assert {lr: len(logged(swept / f"lr={lr}", "train")) for lr in LRS} == steps
    said = capsys.readouterr().out
    assert "difference to lr=1e-4" in said and all(f" lr={lr} " in said for lr in LRS) and "comparison.html" in said


def test_images_are_warned_of_once_for_all_rows(command, tiny, tmp_path, capsys):
    same = f"--data.val={tiny['data.train']}"
    assert main([*(option for option in command if "data.val" not in option), same, f"--out={tmp_path / 'lrs'}"]) == 0
    before, *rows = capsys.readouterr().out.split(", row ")
    assert before.count("also training images") == 1 and len(rows) == len(LRS)
    for lr in LRS:  # and each result has it
        warnings = json.loads((tmp_path / "lrs" / f"lr={lr}" / "result.json").read_text())["warnings"]
        assert "also training images" in str(warnings)


def test_several_options_are_combined_and_the_default_folder_is_named_after_them(tmp_path, monkeypatch, tiny):
    from fastft.jobs.grid import read_grid

    grid = read_grid("photos", ["--lr=1e-4,3e-4", "--model.drop_path=0,0.1", "--data=a.beton,b.beton", "--seed=1"])
    assert grid.name == "photos-lr-drop_path" and list(grid.overrides) == ["--data=a.beton,b.beton", "--seed=1"]
    assert [tuple(row.values()) for row in grid.rows] == [
        ("1e-4", "0"),
        ("1e-4", "0.1"),
        ("3e-4", "0"),
        ("3e-4", "0.1"),
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["photos"],
            "photos is a recipe. Give an option several values, such as --optim.lr=1e-4,3e-4,1e-3, or give a table",
        ),
        (["photos", "--lr=1e-4,1e-4"], "--lr=1e-4,1e-4: give different values"),
        (["photos", "--lr=1e-4,fast"], "optim.lr is 'fast'"),
        (["photos", "02_lr", "--lr=1e-4,1e-3"], "photos is a recipe, not a table. Give it alone"),
        (["fotos", "--lr=1e-4,1e-3"], "Did you mean photos?"),
    ],
)
def test_what_is_no_grid_is_one_line(words, message, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refused(["sweep", *words])
    assert list(tmp_path.iterdir()) == []
