"""Metrics over classes and label sets equal scikit-learn's."""

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, balanced_accuracy_score, classification_report, f1_score

from fastft.evaluate.metrics import (
    balanced_accuracy,
    class_metrics,
    confusion_counts,
    cross_fitted_f1,
    largest_confusions,
    macro_f1,
    mean_average_precision,
    predict_sets,
)
from fastft.evaluate.scores import _set_scores
from fastft.machine.distributed import World
from fastft.run.predictions import Predictions
from tests.written import predictions_of


@pytest.fixture
def predictions() -> Predictions:
    """400 images of 6 classes: class 4 has no images, class 5 is never predicted."""
    noise = np.random.default_rng(0)
    labels = noise.choice([0, 1, 2, 3, 5], 400, p=[0.5, 0.2, 0.15, 0.1, 0.05])
    logits = noise.normal(size=(400, 6)).astype(np.float32)
    logits[np.arange(400), labels] += 1.5
    logits[:, 5] = -50
    return predictions_of(logits, labels)


def test_means_over_classes_are_those_of_scikit_learn(predictions):
    p = predictions
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        expected = balanced_accuracy_score(p.labels_N, p.predicted_N)
    assert balanced_accuracy(p) == pytest.approx(100 * expected)
    report = classification_report(p.labels_N, p.predicted_N, output_dict=True, zero_division=0)
    assert macro_f1(p) == pytest.approx(100 * report["macro avg"]["f1-score"])


def test_every_class_has_its_precision_recall_and_images(predictions):
    p = predictions
    for c in class_metrics(p):
        true, predicted = p.labels_N == c.label, p.predicted_N == c.label
        hits = (true & predicted).sum()
        assert c.images == true.sum()
        assert c.precision == (pytest.approx(100 * hits / predicted.sum()) if predicted.any() else None)
        assert c.recall == (pytest.approx(100 * hits / true.sum()) if true.any() else None)
        assert (c.f1 is None) == (not true.any())
    assert [(c.precision, c.recall) for c in class_metrics(p)][4:] == [(0.0, None), (None, 0.0)]


def test_the_largest_confusions_are_cells_of_the_matrix(predictions):
    matrix = confusion_counts(predictions)
    assert matrix.sum() == 400 and np.trace(matrix) == predictions.right_N.sum()
    found = largest_confusions(predictions)
    assert {(label, predicted): images for label, predicted, images in found} == {
        (i, j): matrix[i, j] for i in range(6) for j in range(6) if i != j and matrix[i, j]
    }
    assert [images for *_, images in found] == sorted((images for *_, images in found), reverse=True)


EMPTY = 3  # a class without images


@pytest.fixture(scope="module")
def sets() -> Predictions:
    rng = np.random.default_rng(0)
    labels = rng.random((400, 5)) < [0.5, 0.2, 0.05, 0, 0.9]
    logits = (rng.normal(size=labels.shape) * 2 + 3 * labels - 2).astype(np.float32)
    return predict_sets(labels, logits)


def test_metrics_equal_scikit_learns(sets: Predictions) -> None:
    p, present = sets, [0, 1, 2, 4]
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
    p = predict_sets(labels, np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32))
    assert macro_f1(p) == 100 * sum(f1_score(labels[:, k], p.predicted_N[:, k]) for k in present)
    assert np.isfinite([mean_average_precision(p), cross_fitted_f1(p)]).all()


def test_the_loss_of_weights_that_give_nan_is_nan() -> None:
    rows = torch.tensor([[1.0, 0, math.nan, 2], [0, 1, -1, 1]])  # labels, then logits
    assert math.isnan(_set_scores([rows], 2, World(0, 1, 0, torch.device("cpu")), ()).scores.loss)


def test_thresholds_of_small_probabilities_are_kept() -> None:
    labels = np.arange(40)[:, None] >= np.array([30, 35])
    p = predict_sets(labels, (labels - 18).astype(np.float32))
    np.testing.assert_array_equal(p.confidence_N >= p.thresholds_K, labels)


def test_no_other_threshold_has_a_larger_f1(sets: Predictions) -> None:
    p = sets
    for k in (0, 1, 2, 4):
        probabilities, labels = p.confidence_N[:, k], p.labels_N[:, k]
        hits = labels[np.argsort(-probabilities)].cumsum()  # of thresholds at each of the probabilities
        best = (2 * hits / (np.arange(1, len(labels) + 1) + labels.sum())).max()
        assert f1_score(labels, p.predicted_N[:, k]) == pytest.approx(best)


def test_cross_fitted_f1_does_not_flatter() -> None:
    """Labels are random here: thresholds fitted on the same few images have a larger F1."""
    rng, gaps = np.random.default_rng(0), []
    for _ in range(10):
        labels, logits = rng.random((40, 4)) < 0.2, rng.normal(size=(40, 4)).astype(np.float32)
        p = predict_sets(labels, logits)
        gaps.append(macro_f1(p) - cross_fitted_f1(p))
    assert np.mean(gaps) > 5
