"""`fastft explain` gives the reference's numbers, from the recipe alone; `fastft recipes` compares recipes."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from beton_tools.base.errors import UserError
from fastft.cli import main
from fastft.cost.explanation import Explanation, explain, list_recipes
from fastft.data.order import BatchLayout
from fastft.recipe import load_recipe
from fastft.recipe.recipe_file import RECIPES, TABLES
from fastft.recipe.training_images import describe_expectation, expected_top1
from tests.optim.test_groups import B16_SCALES


def explained(name: str, *overrides: str) -> Explanation:
    return explain(load_recipe(f"rcp/{name}.yaml", overrides))


def test_b16_equals_the_reference_log():
    values = explained("final_b16")
    scales = sorted({g.lr_scale for g in values.groups})
    assert len(scales) == 14 and scales == pytest.approx(B16_SCALES, rel=1e-5)
    assert sum(g.parameters for g in values.groups) == 85_978_600
    assert values.schedule.steps_per_epoch == 625
    assert values.schedule.total_steps == 31_250
    assert values.schedule.lr_by_epoch[0] == 0
    assert values.schedule.lr_by_epoch[10] == pytest.approx(6e-4)
    assert values.cost.train_flops_per_image == pytest.approx(105.4e9, rel=1e-3)


def test_brackets_in_paths_are_printed_as_they_are(tmp_path, capsys):
    for path in ("d[raw]/train.beton", "d[/x]/train.beton"):
        assert main(["explain", "final_b16", "--verbose", f"--data.train={tmp_path}/{path}"]) == 0
        assert path in capsys.readouterr().out.replace("\n", "")


@pytest.mark.parametrize(
    ("overrides", "differing"),
    [
        (["--optim.lr=1"], "optim.lr"),
        (["--model.weights=random", "--optim.lr=1"], "model.weights, optim.lr"),
        (["--data.num_classes=10"], "data.num_classes"),
        (["--train.eval_every=50", "--train.eval_crop_pct=0.9"], "train.eval_every, train.eval_crop_pct"),
        (
            [f"--augment.{k}=0.6" for k in ("hflip", "erase_prob", "mixup", "cutmix", "scale_min")],
            "augment.scale_min, augment.hflip, augment.erase_prob, augment.mixup and 1 more",
        ),
    ],
)
def test_no_accuracy_is_expected_once_an_option_differs_that_changes_it(overrides, differing):
    recipe = load_recipe("final_b16", overrides)
    assert (expected_top1(recipe), describe_expectation(recipe)) == (None, f"no expectation: differs in {differing}")


def test_explain_and_cost_say_that_no_accuracy_is_expected(capsys):
    for command in (["explain", "final_b16"], ["cost", "final_b16", "frugal_b16", "--gpu", "v100"]):
        assert main([*command, "--optim.lr=1"]) == 0
        printed = " ".join(capsys.readouterr().out.split())
        assert "no expectation: differs in optim.lr" in printed and "85.7" not in printed


@pytest.mark.parametrize(
    "override",
    [
        "--optim.lr=6.0e-4", "--train.device=cpu", "--train.seed=3", "--data.workers=2", "--train.micro_batch=64",
        "--train.amp=fp32", "--train.checkpoint_steps=0", "--train.run_dir=x", "--data.train=nowhere.beton",
    ],
)  # fmt: skip
def test_the_accuracy_is_expected_while_nothing_differs_that_changes_it(override):
    recipe = load_recipe("final_b16", [override])
    assert describe_expectation(recipe) == "expected 85.7 % top-1 (paper Table 10)"
    assert expected_top1(recipe) == 85.7


def test_a_recipe_inherits_no_expectation_unless_it_states_its_own(tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: final_b16\noptim: {lr: 1.0e-3}\n")
    assert describe_expectation(load_recipe(tmp_path / "mine.yaml")) == "no expectation: differs in optim.lr"
    (tmp_path / "stated.yaml").write_text("extends: mine.yaml\nabout: {top1: 85.1, source: my log}\n")
    assert describe_expectation(load_recipe(tmp_path / "stated.yaml")) == "expected 85.1 % top-1 (my log)"


def test_fewer_images_than_a_batch_are_refused_as_by_the_trainer(capsys):
    with pytest.raises(UserError) as trainer:
        BatchLayout(1000, 2048, 2048)
    with pytest.raises(UserError, match=str(trainer.value)):
        explained("final_b16", "--data.train_size=1000")
    assert main(["cost", "rcp/final_b16.yaml", "--gpu", "v100", "--data.train_size=1000"]) == 2
    assert f"rcp/final_b16.yaml: {trainer.value}" in capsys.readouterr().err


def test_a_probe_recipe_names_what_others_reached_and_where():
    """benchmarks/published.yaml has their figures, for the tables in the documentation."""
    heads = yaml.safe_load((Path(__file__).parents[2] / "benchmarks/published.yaml").read_text())["heads"]
    assert set(heads) == {path.stem for path in RECIPES.glob("probe_*.yaml")}
    for name, theirs in heads.items():
        told = describe_expectation(load_recipe(name))
        assert f"Others reached {theirs['top1']} %" in told and theirs["source"] in told
        head = "".join(line.removeprefix("# ") for line in (RECIPES / f"{name}.yaml").open() if line.startswith("#"))
        assert f"{theirs['top1']} % ({theirs['source']})" in " ".join(head.split())


def test_mixing_is_listed_only_if_enabled():
    assert not any("mixup" in line for line in explained("final_b16").augment)
    assert any("mixup" in line for line in explained("baseline_b16").augment)


# fastft recipes ----------------------------------------------------------------------------------------------------------


def test_recipes_are_listed_in_the_columns_that_there_are(capsys, monkeypatch):
    """tests/golden compares the content of the list."""
    assert main(["recipes", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert {r["name"] for r in values["recipes"]} == {path.stem for path in RECIPES.glob("*.yaml")}
    assert {t["name"] for t in values["tables"]} == {path.stem for path in TABLES.glob("*.yaml")}
    for width, gpus in ((60, ["V100"]), (100, ["V100", "A100", "H100"])):
        monkeypatch.setenv("COLUMNS", str(width))
        assert main(["recipes"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= width
        assert [gpu for gpu in ("V100", "A100", "H100") if f"{gpu} h" in lines[1]] == gpus
        row = next(line.split() for line in lines if "frugal_b16_half" in line)
        assert row[1] == "85.5" and len([cell for cell in row[2:5] if "-" in cell]) == len(gpus)
        assert next(line for line in lines if line.startswith(" demo")).split()[1] == "settings"  # no hours


def test_every_command_and_page_has_the_same_range_of_hours(capsys):
    """From the fastest to the slowest published training like fastft's."""
    assert main(["explain", "final_b16", "--json"]) == 0
    low, high = json.loads(capsys.readouterr().out)["cost"]["gpu_hours_range"]["V100"]
    assert main(["cost", "final_b16", "--gpu", "v100", "--json"]) == 0
    hours = {e["basis"]: e["gpu_hours"] for e in json.loads(capsys.readouterr().out)["recipes"][0]["estimates"]}
    assert (hours["fastest"], hours["slowest"]) == (pytest.approx(low), pytest.approx(high))
    assert low < hours["middle"] < high
    assert main(["recipes"]) == 0
    in_list = next(line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["final_b16"])
    root = Path(__file__).parents[2]
    in_readme = next(line for line in (root / "README.md").read_text().splitlines() if line.startswith("| `final_b16`"))
    in_recipe = next(
        line for line in (root / "rcp/final_b16.yaml").read_text().splitlines() if line.startswith("# Cost")
    )
    assert all(f" {low:.0f}-{high:.0f} " in place for place in (in_list, in_readme, in_recipe))


def test_the_cheapest_recipes_with_a_published_source():
    """In shares of the hours of the paper's schedule, which do not depend on the price of an hour."""
    hours = {r.name: (r.expected_top1, r.gpu_hours["V100"]) for r in list_recipes().recipes}
    whole = hours["final_b16"][1]
    for top1, share in ((85.0, 0.27), (85.3, 0.31)):
        assert any(has and has >= top1 and h <= share * whole for has, h in hours.values())


def test_costs_are_of_three_gpus_with_verbose_of_all_and_on_a_gpu_of_that_one(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA L40S")
    for available, options, shown in (
        (False, [], {"V100", "H100"}),
        (False, ["--verbose"], {"V100", "H100", "L40S"}),
        (True, [], {"L40S"}),
    ):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert main(["explain", "final_b16", *options]) == 0
        out = capsys.readouterr().out
        assert {gpu for gpu in ("V100", "H100", "L40S") if gpu in out} == shown


def test_a_schedule_that_is_shorter_than_its_warm_up_is_refused_with_what_to_set(capsys):
    assert main(["explain", "final_b16", "--epochs=3"]) == 2
    assert "Set --schedule.warmup=0.2, a share of the epochs" in capsys.readouterr().err
    assert main(["explain", "final_b16", "--epochs=3", "--schedule.warmup=0.2"]) == 0
