"""Every row of the paper is a recipe with the paper's values and accuracy; recipes of our own say what they expect."""

import hashlib
import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fastft.augment.recipe_policy import build_mixer, build_policy
from fastft.choose.automatic import resolve
from fastft.cli import main
from fastft.jobs.sweep import plan_runs
from fastft.model.recipe_model import build_model, recipe_arch
from fastft.optim import layer_groups
from fastft.optim.ema import ema_horizon, ema_warnings
from fastft.optim.schedule import short_run_warnings, small_batch_warnings
from fastft.recipe import Recipe, differences, load_recipe
from fastft.recipe.load import FIELDS
from fastft.recipe.recipe_file import recipe_names
from fastft.recipe.schema import About
from fastft.recipe.tables import Row, Sweep, load_sweep
from fastft.report.run_charts import reference_curves

RECIPES = Path("rcp")
SWEEPS = {s.name: s for s in map(load_sweep, sorted(RECIPES.glob("tables/*.yaml")))}
FILES = sorted(path for path in RECIPES.glob("*.yaml") if path.stem not in ("demo", "photos"))
GOLDEN = Path(__file__).parent / "golden_recipes.json"


def differing(recipe: Recipe, stage: Recipe) -> dict[str, Any]:
    """Options whose value differs from the stage's, `about` apart."""
    return {key: mine for key, (mine, _) in differences(recipe, stage).items() if not key.startswith("about.")}


def rows() -> Iterator[tuple[Sweep, Row, Recipe]]:
    """Every row of every table with its recipe."""
    for sweep in SWEEPS.values():
        for row in sweep.rows:
            yield sweep, row, load_recipe(sweep.reference(row))


def test_every_table_of_the_paper_is_there_and_timms_starts():
    tables = {*(f"{i:02}" for i in (*range(1, 10), *range(11, 18))), "fig1", "fig2", "fig3", "starts"}
    assert {name.split("_")[0] for name in SWEEPS} == tables


def test_rows_are_the_papers():
    """golden_tables.json was compared with a transcription of the paper: series, label, top-1 and recipe of every row.

    starts: with timm's results-imagenet.csv.
    """
    found: dict[str, list[Any]] = {}
    for sweep, row, recipe in rows():
        found.setdefault(sweep.name, []).append([row.series, row.label, row.paper, recipe.name])
    assert found == json.loads(GOLDEN.with_name("golden_tables.json").read_text())


def test_raw_weights_are_compared_where_the_paper_has_no_ema():
    raw = {(sweep.name, row.series) for sweep, row, _ in rows() if row.number == "raw"}
    assert raw == {("01_baseline", ""), ("02_lr", ""), ("03_ema", "w/o EMA"), ("fig1_steps", "")}


def test_a_row_expects_the_figure_of_its_table():
    for sweep, row, recipe in rows():
        if row.paper is None:
            assert recipe.about == About(None, f"no expectation: {sweep.source} states no accuracy")
        else:
            raw = ", raw weights" if row.number == "raw" else ""
            assert recipe.about == About(row.paper, sweep.source + raw), row.title


def test_names_are_unique_over_all_tables_and_recipes():
    """A run is named after its recipe: two recipes of one name would share runs/NAME."""
    names = [row.name for sweep in SWEEPS.values() for row in sweep.rows if row.name]
    names += [path.stem for path in RECIPES.glob("*.yaml")]
    assert len(names) == len(set(names))


def digest(recipe: Recipe) -> str:
    own = {key: value for key, value in recipe.flat().items() if not key.startswith("about.")}
    values = {key: value for key, value in own.items() if value != FIELDS[key].default}
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=6).hexdigest()


def test_no_recipe_changes_its_values_by_accident():
    """Of every recipe and row, the options that differ from their defaults."""
    golden = json.loads(GOLDEN.read_text())
    found = {recipe.name: recipe for _, _, recipe in rows()} | {
        path.stem: resolve(load_recipe(path)) for path in RECIPES.glob("*.yaml")
    }
    assert {name: digest(recipe) for name, recipe in found.items()} == golden


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recipe_starts_with_its_command_expectation_and_cost(path):
    lines = path.read_text().splitlines()
    assert lines[0].startswith(f"# fastft train {path.stem} --data.train=")
    head = [line for line in lines if line.startswith("#")]
    assert any("Expected: " in line for line in head)
    assert head[-1].startswith("# Cost: ")
    top1 = load_recipe(path).about.top1
    expected = "Expected: unknown, not run" if top1 is None else f"Expected: {top1} % top-1"
    assert any(expected in line for line in head)


def test_no_recipe_with_an_expected_accuracy_is_warned_of():
    """The log that the accuracy is of had the same EMA."""
    for name in recipe_names():
        recipe = load_recipe(name)
        assert recipe.about.top1 is None or ema_warnings(recipe) == []


@pytest.mark.parametrize("name", ["brief_b16_half", "quick_b16_half"])
def test_the_advice_about_the_ema_of_a_stopped_schedule_ends_the_warning(name):
    changed = ["--optim.lr=1e-4"]  # the accuracy of the log is not expected any more
    (warning,) = ema_warnings(load_recipe(name, changed))
    advice = re.search(r"Set (--ema\.horizon=[0-9.]+),", warning)[1]
    assert ema_warnings(load_recipe(name, [*changed, advice])) == []


def test_a_run_that_stops_at_its_linear_probe_is_not_warned_of_its_training():
    recipe = resolve(load_recipe("photos", ["--schedule.stop_epoch=0", "--data.train_size=80", "--data.num_classes=4"]))
    assert recipe.epochs == 0 and ema_horizon(recipe) > 0
    assert [*ema_warnings(recipe), *short_run_warnings(recipe), *small_batch_warnings(recipe, set())] == []


def test_a_horizon_of_a_few_steps_is_an_ema_even_if_it_rounds_to_one_step(capsys):
    assert main(["explain", "fitted_b16_half", "--data.train_size=2048", "--schedule.epochs=6"]) == 0
    assert "6 steps, 1 per epoch" in capsys.readouterr().out


@pytest.mark.slow  # prices all 120 rows
def test_costs_and_the_page_of_tables_are_up_to_date_with_the_cost_model():
    stale = runpy.run_path("docs/paper_tables.py")["stale"]()
    assert not stale, "run: python docs/paper_tables.py"


def test_the_demos_recipe_finds_its_architecture_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert recipe_arch(load_recipe("demo")).layers == 12


def recipes_by_training() -> dict[str, Recipe]:
    """One recipe per training of all tables, by its key."""
    return {run.key: run.recipe for sweep in SWEEPS.values() for run in plan_runs(sweep, (), Path("runs"))}


def test_every_row_builds_and_trains():
    for recipe in recipes_by_training().values():
        build_policy(recipe)
        assert (build_mixer(recipe) is None) == (recipe.augment.mixup == recipe.augment.cutmix == 0)
    models = {recipe.model: recipe for recipe in recipes_by_training().values()}
    for recipe in models.values():
        name, arch = recipe.name, recipe_arch(recipe)
        with torch.device("meta"):
            model = build_model(recipe, pretrained=False)
        groups = layer_groups(model, arch.layers, recipe.optim.layer_decay, recipe.optim.weight_decay)
        top = recipe.model.trainable_layers
        lowest = 0 if top is None else arch.layers + 1 - top  # block i is layer i + 1, the head layers + 1
        assert min(group.layer_id for group in groups) == lowest, name
        trained = {n for group in groups for n in group.names}
        assert any("rel_pos_bias" in n for n in trained) == recipe.model.rel_pos_bias, name
        assert any(".ls_" in n for n in trained) == (recipe.model.layer_scale is not None), name
        rates = [block.drop_path.rate for block in model.visual.transformer.resblocks]
        assert rates == pytest.approx([recipe.model.drop_path * i / (arch.layers - 1) for i in range(arch.layers)])


ONE_EVALUATION = {"train.eval_every": 5, "train.eval_weights": "ema"}
CURVES = reference_curves()


@pytest.mark.parametrize("name", [p.stem for p in FILES if p.stem.startswith(("frugal_", "quick_", "brief_"))])
def test_stopped_recipes_expect_the_mean_of_five_epochs_of_the_log_round_the_stop(name):
    """Less 0.1 points if half of the blocks is frozen."""
    kind, _, size = name.partition("_")
    size, half, _ = size.partition("_half")
    final, recipe = load_recipe(f"final_{size}"), load_recipe(name)
    curve, last = CURVES[final.name].top1_ema, recipe.epochs - 1
    assert kind != "frugal" or last == curve.index(max(curve))
    frozen = {"model.trainable_layers": recipe_arch(final).layers // 2} if half else {}
    assert differing(recipe, final) == {"schedule.stop_epoch": recipe.epochs} | ONE_EVALUATION | frozen
    assert recipe.about.top1 == pytest.approx(sum(curve[last - 2 : last + 3]) / 5 - 0.1 * bool(half), abs=0.051)
    epochs = f"mean of epochs {last - 2} to {last + 2} of one log"
    start = f"extrapolated: {f'frugal_{size}' if kind == 'frugal' else epochs}" if half else epochs
    assert str(recipe.about.source).startswith(start)
