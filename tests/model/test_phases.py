"""Values per epoch, and the phases that they make of a run."""

import pytest

from beton_tools.base.errors import UserError
from fastft.model import load_arch
from fastft.model.phases import Phase, find_phases, phase_at, with_phase
from fastft.recipe import epoch_values, load_recipe

SIZES = "--schedule.sizes=0:160,24:224"


def test_a_recipe_without_schedules_is_one_phase():
    recipe = load_recipe("frugal_b16_half", ["--model.patch_dropout=0.35"])
    assert find_phases(recipe) == [Phase(0, 30, 224, 0.35)]


def test_steps_change_size_and_patch_dropout_at_their_epochs():
    recipe = load_recipe("frugal_b16", [SIZES, "--model.patch_dropout=0:0.5,27:0"])
    assert find_phases(recipe) == [
        Phase(0, 24, 160, 0.5), Phase(24, 3, 224, 0.5), Phase(27, 3, 224, 0.0)
    ]  # fmt: skip
    assert phase_at(recipe, 23).size == 160
    assert phase_at(recipe, 99).size == 224


def test_a_run_that_stops_early_has_only_the_phases_it_trains():
    recipe = load_recipe("final_b16", [SIZES, "--schedule.stop_epoch=10"])
    assert find_phases(recipe) == [Phase(0, 10, 160, 0.0)]


def test_a_ramp_grows_by_whole_patches_as_ffcv_imagenets_does_by_its_multiples():
    """ffcv-imagenet's get_resolution: np.interp between start_ramp and end_ramp, rounded to a multiple (there of 32)."""
    import numpy as np

    recipe = load_recipe("final_b16", ["--schedule.sizes=0:160,10:160-40:224"])
    patch = load_arch(recipe.model.arch).patch_size
    wanted = [round(np.interp(e, [10, 40], [160, 224]) / patch) * patch for e in range(50)]
    phases = find_phases(recipe)
    assert [phase_at(recipe, e).size for e in range(50)] == wanted
    assert [p.size for p in phases] == [160, 176, 192, 208, 224]
    assert sum(p.epochs for p in phases) == 50


def test_the_recipe_of_a_phase_has_its_constants():
    recipe = load_recipe("frugal_b16", [SIZES, "--model.patch_dropout=0:0.5,27:0"])
    first = with_phase(recipe, find_phases(recipe)[0])
    assert find_phases(first) == [Phase(0, 30, 160, 0.5)]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--schedule.sizes=224", "epoch:value steps"),
        ("--schedule.sizes=0:160.5,2:224", "each a whole number"),
        ("--schedule.sizes=1:160,2:224", "from epoch 0 on"),
        ("--schedule.sizes=0:160,24:192,24:224", "epoch:value"),
        ("--schedule.sizes=0:0,24:224", "must be epoch:value steps"),
        ("--schedule.sizes=0:160,24:192", r"must end with model\.image_size \(224\)"),
        ("--schedule.sizes=0:256,24:224", r"and not exceed it"),
        ("--schedule.sizes=0:160,50:224", r"changes at epoch 50, but schedule\.epochs is 50"),
        ("--model.patch_dropout=0:0.99,3:0", "a number >= 0 and <= 0.95, or epoch:value steps"),
        ("--model.patch_dropout=0:0.5,60:0", r"model\.patch_dropout changes at epoch 60"),
    ],
)
def test_bad_values_are_one_line(option, message):
    with pytest.raises(UserError, match=message) as error:
        load_recipe("final_b16", [option])
    assert "\n" not in str(error.value)


def test_a_relative_position_bias_is_refused_with_smaller_images():
    with pytest.raises(UserError, match=r"model\.rel_pos_bias has a table for one image size"):
        load_recipe("final_b16", [SIZES, "--model.rel_pos_bias=true"])


def test_a_size_that_is_no_multiple_of_the_patch_is_refused_with_the_option_and_a_near_one():
    recipe = load_recipe("final_l14", ["--schedule.sizes=0:160,3:224"])
    with pytest.raises(UserError, match=r"schedule\.sizes: image size 160 .* patch size 14; use 154 or 168"):
        find_phases(recipe)


def test_the_last_value_holds_until_the_end():
    values = epoch_values("0:1-4:2,6:5")
    assert [values.at(e) for e in (0, 1, 2, 4, 5, 6, 100)] == [1, 1.25, 1.5, 2, 2, 5, 5]
