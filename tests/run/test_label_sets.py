"""Metrics of several labels per image: equal to scikit-learn's, thresholds with the largest F1, temperature."""

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score

from fastft.run.prediction_metrics import (
    Predictions,
    calibrate,
    class_metrics,
    fit_temperature,
    macro_f1,
    mean_average_precision,
    sigmoid,
)
from fastft.train.distributed import World
from fastft.train.evaluate import _set_scores

EMPTY = 3  # a class without images


@pytest.fixture(scope="module")
def predictions() -> Predictions:
    rng = np.random.default_rng(0)
    labels = rng.random((400, 5)) < [0.5, 0.2, 0.05, 0, 0.9]
    logits = (rng.normal(size=labels.shape) * 2 + 3 * labels - 2).astype(np.float32)
    return Predictions.of_sets(labels, logits)


def test_metrics_equal_scikit_learns(predictions: Predictions) -> None:
    p, present = predictions, [0, 1, 2, 4]
    labels, scores = p.labels_N[:, present], p.confidence_N[:, present]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mean_average_precision(p) == pytest.approx(
            100 * average_precision_score(labels, scores, average="macro")
        )
        assert macro_f1(p) == pytest.approx(100 * f1_score(labels, p.predicted_N[:, present], average="macro"))
        rows = class_metrics(p)
    assert [row.images for row in rows] == p.labels_N.sum(0).tolist()
    assert (rows[EMPTY].average_precision, rows[EMPTY].f1, rows[EMPTY].threshold) == (None, None, 50)
    assert rows[0].f1 == pytest.approx(100 * f1_score(p.labels_N[:, 0], p.predicted_N[:, 0]))


@pytest.mark.parametrize("present", [[], [1]])
def test_f1_of_at_most_one_class_with_images_is_that_classs(present: list[int]) -> None:
    labels = np.zeros((20, 3), bool)
    labels[:8, present] = True
    p = Predictions.of_sets(labels, np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32))
    assert macro_f1(p) == 100 * sum(f1_score(labels[:, k], p.predicted_N[:, k]) for k in present)
    assert set(p.set_scores(fitted=True)) == {"map", "macro_f1", "thresholds"}


def test_the_loss_of_weights_that_give_nan_is_nan() -> None:
    rows = torch.tensor([[1.0, 0, math.nan, 2], [0, 1, -1, 1]])  # labels, then logits
    assert math.isnan(_set_scores([rows], 2, World(0, 1, 0, torch.device("cpu")), ()).loss)


def test_thresholds_of_small_probabilities_are_kept() -> None:
    labels = np.arange(40)[:, None] >= np.array([30, 35])
    p = Predictions.of_sets(labels, (labels - 18).astype(np.float32))
    scores = p.set_scores(fitted=True)
    np.testing.assert_array_equal(p.confidence_N >= scores["thresholds"], labels)


def test_no_other_threshold_has_a_larger_f1(predictions: Predictions) -> None:
    p = predictions
    for k in (0, 1, 2, 4):
        probabilities, labels = p.confidence_N[:, k], p.labels_N[:, k]
        best = max(f1_score(labels, probabilities >= t) for t in probabilities)
        assert f1_score(labels, p.predicted_N[:, k]) == pytest.approx(best)


def test_cross_fitted_f1_does_not_flatter() -> None:
    """Labels are random here: thresholds fitted on the same few images have a larger F1."""
    rng, gaps = np.random.default_rng(0), []
    for _ in range(10):
        labels, logits = rng.random((40, 4)) < 0.2, rng.normal(size=(40, 4)).astype(np.float32)
        p = Predictions.of_sets(labels, logits)
        gaps.append(macro_f1(p) - p.set_scores(fitted=True)["macro_f1"])
    assert np.mean(gaps) > 5


def test_calibration_is_of_all_labels() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 3)).astype(np.float32) * 2
    labels = rng.random(logits.shape) < sigmoid(logits)
    right, wrong = (calibrate(Predictions.of_sets(labels, factor * logits)).plain for factor in (1, 3))
    assert right.images.sum() == labels.size and right.ece < 2 < 5 < wrong.ece
    temperature, _ = fit_temperature(3 * logits, labels)
    assert temperature == pytest.approx(3, rel=0.05)
