"""The grid varies the learning rates of head and middle block by 3, and short runs keep the shape of the whole one."""

from fractions import Fraction

import pytest

from fastft.recipe import load_recipe
from fastft.search.settings import DEFAULT, Setting, grid, mid_lr, rung_epochs, shortened, with_setting
from fastft.train.augmentation_choice import DECIDED

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
