"""The learning rate of every step."""

import numpy as np
import pytest

from fastft.cost.explanation import explain
from fastft.optim import WarmupCosine
from fastft.optim.schedule import small_batch_warnings
from fastft.recipe import load_recipe


def test_schedule_is_that_of_the_reference():
    """np.linspace from 0 for the warm-up, then the cosine from the full lr to min_lr, per iteration."""
    epochs, warmup, spe, lr, floor = 50, 10, 625, 6e-4, 1e-6
    steps = np.arange((epochs - warmup) * spe)
    want = np.concatenate(
        [np.linspace(0, lr, warmup * spe), floor + 0.5 * (lr - floor) * (1 + np.cos(np.pi * steps / len(steps)))]
    )
    schedule = WarmupCosine(lr, floor, warmup * spe, epochs * spe)
    assert [schedule(i) for i in range(epochs * spe)] == pytest.approx(want, abs=1e-15)
    assert (schedule(0), schedule(6249), schedule(6250)) == (0, 6e-4, 6e-4)


def warnings_of(options: list[str]) -> list[str]:
    recipe = load_recipe("final_l14", options)
    return small_batch_warnings(recipe, recipe.given | recipe.automatic)


def test_the_papers_rate_with_a_small_batch_is_one_warning_with_the_rate_that_fits():
    """4e-4 * sqrt(32 / 2048) = 5e-5."""
    small = "--optim.batch_size=32"
    assert len(warnings_of(["--optim.batch_size=512"])) == 1  # a quarter of the paper's
    for options in ([small], [small, "--data.train_size=20000"]):
        (warning,) = warnings_of(options)
        assert warning.startswith("optim.lr 0.0004 is large for batches of 32") and "--optim.lr=5e-05" in warning
        assert explain(load_recipe("final_l14", options)).warnings.count(warning) == 1
    for options in (
        [],
        ["--optim.batch_size=520"],
        [small, "--optim.lr=5e-5"],
        [small, "--optim.lr=4e-4"],
        [small, "--data.train_size=19999"],
        ["--optim.lr=4e-3"],
    ):
        assert warnings_of(options) == [], options
