"""The bootstrap removes what choosing the best of several settings adds by luck."""

import numpy as np
import pytest

from fastft.tune.estimate import optimism


def test_the_best_of_nine_equal_settings_is_corrected_to_their_true_accuracy() -> None:
    """200 images, 80 %: the best of nine is at about 84 %."""
    noise = np.random.default_rng(0)
    chosen, corrected = [], []
    for _ in range(60):
        right = noise.random((9, 200)) < 0.8
        best = 100 * right.mean(1).max()
        chosen.append(best)
        corrected.append(best - optimism(right, np.ones(200), repeats=200))
    assert np.mean(chosen) > 83.5
    assert np.mean(corrected) == pytest.approx(80, abs=0.7)


def test_a_setting_that_is_clearly_best_is_hardly_corrected() -> None:
    noise = np.random.default_rng(0)
    right = noise.random((9, 1000)) < np.array([0.9, *8 * [0.5]])[:, None]
    assert abs(optimism(right, np.ones(1000))) < 0.3


def test_without_a_choice_there_is_no_correction() -> None:
    assert optimism(np.ones((1, 50), bool), np.ones(50)) == 0


def test_weights_make_it_the_bias_of_balanced_accuracy() -> None:
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
