"""Settings of a search, its time budget, and the figures that are corrected for the choice."""

import json
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from beton_tools.base.errors import UserError
from fastft.recipe import load_recipe
from fastft.search import tune as tune_module
from fastft.search.estimate import compare, optimism
from fastft.search.settings import DEFAULT, Setting, grid, mid_lr, rung_epochs, shortened, with_setting
from fastft.search.tune import Budget
from fastft.train.augmentation_choice import DECIDED
from fastft.train.distributed import World

RECIPE = load_recipe("final_b16")
LAYERS = 12


def test_every_setting_has_the_learning_rates_that_its_factors_say():
    assert len(set(grid(RECIPE, LAYERS))) == 9 and grid(RECIPE, LAYERS)[0] == DEFAULT
    for setting in grid(RECIPE, LAYERS):
        recipe = with_setting(RECIPE, setting, LAYERS)
        assert recipe.optim.lr == pytest.approx(float(setting.head) * 6e-4, rel=1e-3)
        assert mid_lr(recipe, LAYERS) == pytest.approx(float(setting.mid) * 6e-4 * 0.6**6.5, rel=3e-3)


def test_decays_of_twelve_blocks_are_those_of_the_papers_tables():
    decays = [with_setting(RECIPE, setting, LAYERS).optim.layer_decay for setting in grid(RECIPE, LAYERS)]
    assert (min(decays), max(decays)) == (pytest.approx(0.43, abs=0.005), pytest.approx(0.84, abs=0.005))


def test_the_recipes_own_setting_keeps_its_expected_accuracy_and_no_other_does():
    kept = [with_setting(RECIPE, setting, LAYERS).about.top1 is not None for setting in grid(RECIPE, LAYERS)]
    assert kept == [True] + 8 * [False]


def test_settings_that_would_need_a_layer_decay_above_1_are_left_out():
    """A tower of 2 blocks would need a decay of 2.6 for a middle block that learns 9 times as fast."""
    assert Setting(Fraction(1, 3), Fraction(3)) not in grid(RECIPE, 2)
    recipe = load_recipe("final_b16", ["--optim.layer_decay=1", "--optim.lr=0.00012345"])
    settings = grid(recipe, LAYERS)
    assert settings[0] == DEFAULT and len(settings) == 6
    assert all(with_setting(recipe, s, LAYERS).optim.layer_decay <= 1 for s in settings)


def test_short_runs_are_complete_runs_with_the_same_shares():
    assert rung_epochs(RECIPE) == [6, 17, 50]
    short = shortened(RECIPE, 6)
    assert short.schedule.epochs == short.epochs == 6
    assert short.schedule.warmup_epochs / 6 == pytest.approx(10 / 50)
    horizon, whole = 1 / (1 - short.ema.decay), 1 / (1 - RECIPE.ema.decay)
    assert horizon / 6 == pytest.approx(whole / 50, rel=1e-3)
    assert short.evaluations == 1


def test_recipes_that_stop_early_are_shortened_in_both_lengths():
    recipe = load_recipe("frugal_b16")
    assert recipe.epochs < recipe.schedule.epochs
    short = shortened(recipe, rung_epochs(recipe)[0])
    assert short.epochs == rung_epochs(recipe)[0] < short.schedule.epochs
    assert short.epochs / short.schedule.epochs == pytest.approx(recipe.epochs / recipe.schedule.epochs, abs=0.05)


def test_values_that_follow_from_the_images_are_kept_as_shares():
    """`photos` sets warm-up and EMA horizon as shares of the run; the search multiplies the learning rate of the rule."""
    recipe = load_recipe("photos", ["--data.train_size=9000"])
    setting = Setting(Fraction(3), Fraction(1))
    short = shortened(with_setting(recipe, setting, LAYERS), 6)
    assert short.optim.lr == pytest.approx(3 * recipe.optim.lr, rel=1e-3)
    assert short.schedule.warmup_epochs == pytest.approx(0.2 * 6)
    assert 1 / (1 - short.ema.decay) == pytest.approx(0.16 * 6 * short.steps_per_epoch(), rel=0.01)
    assert short.automatic == DECIDED  # each training decides about its augmentation


WORLD = World(0, 1, 0, torch.device("cpu"))
KEYS = ("a", "b", "c", "short", "long", "new")


def opened(path: Path, limit: float, **seconds: float) -> Budget:
    path.write_text(json.dumps({"seconds": seconds}))
    return Budget(path, limit, WORLD, KEYS)


def test_time_is_remembered_also_after_an_error(tmp_path):
    budget = Budget(tmp_path / "tune.json", 100, WORLD, KEYS)
    with pytest.raises(KeyError), budget.timed("a"):
        raise KeyError
    again = Budget(tmp_path / "tune.json", 100, WORLD, KEYS)
    assert 0 < again.spent == budget.spent
    with again.timed("a"):
        pass
    assert again.spent > budget.spent


def test_time_is_remembered_by_a_process_that_was_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(tune_module, "SAVE_SECONDS", 0.01)
    with Budget(tmp_path / "tune.json", 100, WORLD, KEYS).timed("a"):
        deadline = time.monotonic() + 60
        while not (tmp_path / "tune.json").exists():  # as the next process finds it
            assert time.monotonic() < deadline
        assert Budget(tmp_path / "tune.json", 100, WORLD, KEYS).spent > 0


def test_the_time_of_another_search_in_the_folder_is_kept_and_not_counted(tmp_path):
    budget = opened(tmp_path / "tune.json", 100, a=30, other=1000)
    assert budget.spent == 30 and budget.left() == 70 and budget.left(0.5) == 20
    with budget.timed("b"):
        pass
    assert json.loads((tmp_path / "tune.json").read_text())["seconds"]["other"] == 1000


@pytest.mark.parametrize("text", ["{", "[]", '{"seconds": {"a": "x"}}', "{}"])
def test_a_damaged_record_is_one_line(tmp_path, text):
    (tmp_path / "tune.json").write_text(text)
    with pytest.raises(UserError, match="cannot be read"):
        Budget(tmp_path / "tune.json", 100, WORLD, KEYS)


def test_the_best_of_nine_equal_settings_is_corrected_to_their_true_accuracy():
    noise = np.random.default_rng(0)
    chosen, corrected = [], []
    for _ in range(60):
        right = noise.random((9, 200)) < 0.8
        best = 100 * right.mean(1).max()
        chosen.append(best)
        corrected.append(best - optimism(right, np.ones(200), repeats=200))
    assert np.mean(chosen) > 83.5
    assert np.mean(corrected) == pytest.approx(80, abs=0.7)


def test_weights_make_it_the_bias_of_balanced_accuracy():
    """One image of a rare class decides half of the figure: the choice among few such images flatters more."""
    noise = np.random.default_rng(0)
    labels = np.array([0] * 190 + [1] * 10)
    balanced = 1 / np.bincount(labels)[labels]
    gaps = [
        (optimism(right, np.ones(200), 200), optimism(right, balanced, 200))
        for right in (noise.random((9, 200)) < 0.8 for _ in range(20))
    ]
    plain, weighted = np.mean(gaps, axis=0)
    assert weighted > 1.5 * plain


def test_balanced_accuracy_its_gain_and_their_errors_are_those_of_repeated_tests():
    noise, labels = np.random.default_rng(0), np.array([0] * 180 + [1] * 20)
    tuned, own = np.where(labels, 0.5, 0.9), np.where(labels, 0.3, 0.9)
    found = []
    for _ in range(400):
        luck = noise.random(200)
        found.append(compare(labels, luck < tuned, luck < own).as_dict())
    names = ("balanced_accuracy", "balanced_gain", "top1", "gain")
    values = {name: [f[name] for f in found] for name in names}
    for name, expected in zip(names, (70, 10, 86, 2), strict=True):
        assert np.mean(values[name]) == pytest.approx(expected, abs=0.6)
    for name in ("balanced_accuracy", "balanced_gain"):
        errors = [f[f"{name.removesuffix('_accuracy')}_standard_error"] for f in found]
        assert np.mean(errors) == pytest.approx(np.std(values[name]), rel=0.1)
    assert np.mean([f["default_balanced_accuracy"] for f in found]) == pytest.approx(60, abs=0.6)


def test_the_correction_raises_no_figure():
    """Nothing is chosen of two equal settings: the images that a resample leaves out may by chance be easier ones."""
    right = np.tile(np.random.default_rng(0).random(50) < 0.8, (2, 1))
    assert all(optimism(right, np.ones(50), repeats=20, seed=seed) >= 0 for seed in range(20))
