"""The bootstrap removes what choosing the best of several settings adds by luck; standard errors are those of repetitions."""

import numpy as np
import pytest

from fastft.search.estimate import compare, optimism


def test_the_best_of_nine_equal_settings_is_corrected_to_their_true_accuracy():
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
    """The tuned run is better on the rare class only, which is a tenth of the images."""
    noise, labels = np.random.default_rng(0), np.array([0] * 180 + [1] * 20)
    tuned, own = np.where(labels, 0.5, 0.9), np.where(labels, 0.3, 0.9)
    found = []
    for _ in range(400):
        luck = noise.random(200)
        found.append(compare(labels, luck < tuned, luck < own))
    names = ("balanced_accuracy", "balanced_gain", "top1", "gain")
    values = {name: [f[name] for f in found] for name in names}
    for name, expected in zip(names, (70, 10, 86, 2), strict=True):
        assert np.mean(values[name]) == pytest.approx(expected, abs=0.6)
    for name in ("balanced_accuracy", "balanced_gain"):
        errors = [f[f"{name.removesuffix('_accuracy')}_standard_error"] for f in found]
        assert np.mean(errors) == pytest.approx(np.std(values[name]), rel=0.1)
    assert np.mean([f["default_balanced_accuracy"] for f in found]) == pytest.approx(60, abs=0.6)


def test_errors_of_top1_are_binomial_and_a_class_of_one_image_has_one():
    right = np.array([True] * 80 + [False] * 20)
    labels = np.array([0] * 99 + [2])
    found = compare(labels, right, None)
    assert found["standard_error"] == pytest.approx(4) and found["gain"] is None
    assert found["balanced_accuracy"] == pytest.approx(100 * (80 / 99 + 0) / 2)
    assert found["balanced_standard_error"] > 20


def test_the_correction_raises_no_figure():
    """Nothing is chosen of two equal settings: the images that a resample leaves out may by chance be easier ones."""
    right = np.tile(np.random.default_rng(0).random(50) < 0.8, (2, 1))
    assert all(optimism(right, np.ones(50), repeats=20, seed=seed) >= 0 for seed in range(20))
