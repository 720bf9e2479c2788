"""Metrics over classes are scikit-learn's, also where classes have no images or are never predicted."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, classification_report

from fastft.run.prediction_metrics import (
    Predictions,
    balanced_accuracy,
    class_metrics,
    confusion_counts,
    describe_imbalance,
    imbalance,
    largest_confusions,
    macro_f1,
)
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
    found = largest_confusions(predictions, 1000)
    assert {(c.label, c.predicted): c.images for c in found} == {
        (i, j): matrix[i, j] for i in range(6) for j in range(6) if i != j and matrix[i, j]
    }
    assert [c.images for c in found] == sorted((c.images for c in found), reverse=True)


def test_predictions_of_a_perfect_model_have_no_confusion():
    p = predictions_of(np.eye(3, dtype=np.float32), np.arange(3))
    assert largest_confusions(p, 10) == [] and balanced_accuracy(p) == macro_f1(p) == 100


def test_imbalance_is_of_the_classes_that_have_images():
    assert imbalance([120, 0, 10]) == 12
    assert "10 to 120 training images" in describe_imbalance([120, 0, 10])
