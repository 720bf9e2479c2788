"""`fastft explain` gives the reference's numbers, from the recipe alone; `fastft recipes` compares recipes."""

import json

import pytest

from beton_tools.base.errors import UserError
from fastft.cli import main
from fastft.cost.explanation import explain
from fastft.data.order import BatchLayout
from fastft.recipe import load_recipe
from fastft.recipe.recipe_file import RECIPES, TABLES
from tests.optim.test_groups import B16_SCALES


def explained(name: str, *overrides: str) -> dict:
    return explain(load_recipe(f"rcp/{name}.yaml", overrides))


def test_b16_equals_the_reference_log():
    values = explained("final_b16")
    scales = sorted({g["lr_scale"] for g in values["groups"]})
    assert len(scales) == 14 and scales == pytest.approx(B16_SCALES, rel=1e-5)
    assert sum(g["parameters"] for g in values["groups"]) == 85_978_600
    assert values["schedule"]["steps_per_epoch"] == 625
    assert values["schedule"]["total_steps"] == 31_250
    assert values["schedule"]["lr_by_epoch"][0] == 0
    assert values["schedule"]["lr_by_epoch"][10] == pytest.approx(6e-4)
    assert values["cost"]["train_flops_per_image"] == pytest.approx(105.4e9, rel=1e-3)


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
def test_no_accuracy_is_expected_once_an_option_differs_that_changes_it(overrides, differing, capsys):
    values = explained("final_b16", *overrides)
    assert (values["expected_top1"], values["expectation"]) == (None, f"no expectation: differs in {differing}")
    assert main(["explain", "final_b16", *overrides]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"no expectation: differs in {differing}" in printed and "85.7" not in printed
    assert main(["cost", "final_b16", "frugal_b16", "--gpu", "v100", *overrides]) == 0
    assert f"no expectation: differs in {differing}" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "override",
    [
        "--optim.lr=6.0e-4", "--train.device=cpu", "--train.seed=3", "--data.workers=2", "--train.micro_batch=64",
        "--train.amp=fp32", "--train.checkpoint_steps=0", "--train.run_dir=x", "--data.train=nowhere.beton",
    ],
)  # fmt: skip
def test_the_accuracy_is_expected_while_nothing_differs_that_changes_it(override):
    values = explained("final_b16", override)
    assert values["expectation"] == "expected 85.7 % top-1 (paper Table 10)"
    assert values["expected_top1"] == 85.7


def test_a_recipe_inherits_no_expectation_unless_it_states_its_own(tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: final_b16\noptim: {lr: 1.0e-3}\n")
    assert explain(load_recipe(tmp_path / "mine.yaml"))["expectation"] == "no expectation: differs in optim.lr"
    (tmp_path / "stated.yaml").write_text("extends: mine.yaml\nabout: {top1: 85.1, source: my log}\n")
    stated = explain(load_recipe(tmp_path / "stated.yaml"))
    assert stated["expectation"] == "expected 85.1 % top-1 (my log)"


def test_fewer_images_than_a_batch_are_refused_as_by_the_trainer(capsys):
    with pytest.raises(UserError) as trainer:
        BatchLayout(1000, 2048, 2048)
    with pytest.raises(UserError, match=str(trainer.value)):
        explained("final_b16", "--data.train_size=1000")
    assert main(["cost", "rcp/final_b16.yaml", "--gpu", "v100", "--data.train_size=1000"]) == 2
    assert f"rcp/final_b16.yaml: {trainer.value}" in capsys.readouterr().err


def test_mixing_is_listed_only_if_enabled():
    assert not any("mixup" in line for line in explained("final_b16")["augment"])
    assert any("mixup" in line for line in explained("baseline_b16")["augment"])


def test_sizes_by_epoch_are_explained_with_their_flops(capsys):
    values = explained("frugal_b16", "--schedule.sizes=0:160,24:224", "--model.patch_dropout=0:0.35,27:0")
    phases = [(p["first_epoch"], p["epochs"], p["image_size"], p["patch_dropout"]) for p in values["phases"]]
    assert phases == [(0, 24, 160, 0.35), (24, 3, 224, 0.35), (27, 3, 224, 0.0)]
    mean = sum(p["epochs"] * p["train_flops_per_image"] for p in values["phases"]) / 30
    assert values["cost"]["train_flops_per_image"] == pytest.approx(mean)
    assert values["phases"][2]["train_flops_per_image"] == pytest.approx(105.4e9, rel=1e-3)
    assert main(["explain", "frugal_b16", "--schedule.sizes=0:160,24:224"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "epochs 0-23 160 px, 53." in said and "epochs 24-29 224 px, 105.4 GFLOP per image" in said


# fastft recipes ----------------------------------------------------------------------------------------------------------


def test_every_recipe_and_table_is_listed_with_accuracy_and_cost(capsys, monkeypatch):
    assert main(["recipes", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert {r["name"] for r in values["recipes"]} == {path.stem for path in RECIPES.glob("*.yaml")}
    assert {t["name"] for t in values["tables"]} == {path.stem for path in TABLES.glob("*.yaml")}
    for recipe in values["recipes"]:
        assert recipe["expected_top1"] == load_recipe(recipe["name"]).about.top1
        assert set(recipe["gpu_hours"]) >= {"V100", "A100", "H100"}
    for width, with_source in ((80, False), (160, True)):  # a recipe is one line, also in a narrow console
        monkeypatch.setenv("COLUMNS", str(width))
        assert main(["recipes"]) == 0
        lines = capsys.readouterr().out.splitlines()
        row = next(line for line in lines if "frugal_b16 " in line)
        assert len(row) <= width and ("of one log" in row) == with_source
        assert "frugal_b16_384" in lines[lines.index(row) + 1]
        assert any("02_lr" in line for line in lines)
