"""Metrics over classes and label sets equal scikit-learn's; calibration errors are binned, temperatures found."""

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, balanced_accuracy_score, classification_report, f1_score

from fastft.evaluate.scores import _set_scores
from fastft.machine.distributed import World
from fastft.run.predictions import (
    BINS,
    Predictions,
    balanced_accuracy,
    calibrate,
    class_metrics,
    confusion_counts,
    deciding_score,
    describe_imbalance,
    fit_temperature,
    largest_confusions,
    log_sum_exp,
    macro_f1,
    mean_average_precision,
    reject,
    reliability,
    sigmoid,
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
    found = largest_confusions(predictions)
    assert {(label, predicted): images for label, predicted, images in found} == {
        (i, j): matrix[i, j] for i in range(6) for j in range(6) if i != j and matrix[i, j]
    }
    assert [images for *_, images in found] == sorted((images for *_, images in found), reverse=True)


def test_balanced_accuracy_compares_where_classes_that_have_images_are_very_unequal():
    deciding = [deciding_score(False, counts) for counts in ([120, 0, 10], [100, 0, 10])]
    assert deciding == ["balanced_accuracy", "top1"]
    assert "10 to 120 training images" in describe_imbalance([120, 0, 10])


def calibrated(count: int, classes: int, sharpness: float) -> Predictions:
    """Labels drawn from the softmax of the logits; the logits are then multiplied by `sharpness`."""
    noise = np.random.default_rng(0)
    logits = 2 * noise.normal(size=(count, classes))
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (noise.random((count, 1)) > shares.cumsum(1)).sum(1)
    return predictions_of((sharpness * logits).astype(np.float32), labels)


def test_bins_are_those_of_scikit_learn():
    p = calibrated(2000, 4, 1.7)
    accuracy, confidence = calibration_curve(p.right_N, p.confidence_N, n_bins=BINS)
    found = reliability(p.confidence_N, p.right_N)
    filled = found.images > 0
    assert found.confidence[filled] == pytest.approx(confidence, abs=1e-6)
    assert found.accuracy[filled] == pytest.approx(accuracy, abs=1e-6)
    assert found.images.sum() == 2000
    expected = sum(found.images[filled] * np.abs(accuracy - confidence)) / 2000
    assert found.ece == pytest.approx(100 * expected, abs=1e-4)


@pytest.mark.parametrize("sharpness", [0.25, 1.0, 4.0])
def test_temperature_scaling_undoes_over_and_under_confidence(sharpness):
    found = calibrate(calibrated(20_000, 5, sharpness))
    assert found.temperature == pytest.approx(sharpness, rel=0.05)
    assert found.scaled is not None and found.scaled.ece < 1.5
    if sharpness != 1.0:
        assert found.plain.ece > 5 * found.scaled.ece


def test_the_scaled_error_of_each_half_is_from_the_temperature_of_the_other():
    """Even images are right at any confidence and odd ones wrong: no temperature of the other half can help."""
    logits = np.tile(np.array([[2.0, 0.0]], np.float32), (400, 1))
    found = calibrate(predictions_of(logits, np.arange(400) % 2))
    assert found.scaled is not None and found.scaled.ece > 45


def test_few_images_move_the_temperature_less():
    """Where every image is right, the cross-entropy falls without end towards temperature 0, and the prior ends it."""
    few, many = calibrated(30, 5, 4.0), calibrated(3000, 5, 4.0)
    assert 1 < calibrate(few).temperature < 0.8 * calibrate(many).temperature < 4
    assert 0.3 < calibrate(predictions_of(few.logits_NK, few.predicted_N)).temperature < 1


def test_a_perfectly_calibrated_model_has_the_calibration_error_of_chance():
    confidence, rng = np.random.default_rng(1).beta(4, 2, 60), np.random.default_rng(2)
    drawn = [reliability(confidence, rng.random(60) < confidence).ece for _ in range(300)]
    assert reliability(confidence, np.zeros(60)).ece_by_chance == pytest.approx(np.mean(drawn), rel=0.1)


def test_without_logits_there_is_no_temperature():
    p = calibrated(100, 3, 1.0)
    found = calibrate(Predictions(p.labels_N, p.predicted_N, p.confidence_N, p.truth_N, 3))
    assert found.temperature is None and found.scaled is None


EMPTY = 3  # a class without images


@pytest.fixture(scope="module")
def sets() -> Predictions:
    rng = np.random.default_rng(0)
    labels = rng.random((400, 5)) < [0.5, 0.2, 0.05, 0, 0.9]
    logits = (rng.normal(size=labels.shape) * 2 + 3 * labels - 2).astype(np.float32)
    return Predictions.of_sets(labels, logits)


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
    p = Predictions.of_sets(labels, np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32))
    assert macro_f1(p) == 100 * sum(f1_score(labels[:, k], p.predicted_N[:, k]) for k in present)
    assert np.isfinite([mean_average_precision(p), p.fair_f1(fitted=True)]).all()


def test_the_loss_of_weights_that_give_nan_is_nan() -> None:
    rows = torch.tensor([[1.0, 0, math.nan, 2], [0, 1, -1, 1]])  # labels, then logits
    assert math.isnan(_set_scores([rows], 2, World(0, 1, 0, torch.device("cpu")), ()).scores.loss)


def test_thresholds_of_small_probabilities_are_kept() -> None:
    labels = np.arange(40)[:, None] >= np.array([30, 35])
    p = Predictions.of_sets(labels, (labels - 18).astype(np.float32))
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
        p = Predictions.of_sets(labels, logits)
        gaps.append(macro_f1(p) - p.fair_f1(fitted=True))
    assert np.mean(gaps) > 5


def test_calibration_is_of_all_labels() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 3)).astype(np.float32) * 2
    labels = rng.random(logits.shape) < sigmoid(logits)
    right, wrong = (calibrate(Predictions.of_sets(labels, factor * logits)).plain for factor in (1, 3))
    assert right.images.sum() == labels.size and right.ece < 2 < 5 < wrong.ece
    temperature, _ = fit_temperature(3 * logits, labels)
    assert temperature == pytest.approx(3, rel=0.05)


def test_rejecting_images_leaves_those_with_more_confidence():
    confidence, right = np.array([0.4, 0.6, 0.8, 0.92]), np.array([False, True, False, True])
    rows = reject(confidence, right)
    assert [(row.value, row.share, row.kept, row.right) for row in rows] == [
        (0.5, 25, 3, pytest.approx(200 / 3)), (0.7, 50, 2, 50), (0.9, 75, 1, 100), (0.95, 100, 0, None),
    ]  # fmt: skip
    # Wilson's interval for 1 of 1: z^2 / (1 + z^2)
    assert (rows[2].low, rows[2].high) == (pytest.approx(100 / (1 + 1.96**2), abs=0.01), 100)
    assert (rows[3].low, rows[3].high) == (0, 100)
    logits = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    assert len(calibrate(predictions_of(logits, logits.argmax(1))).rejected) == 4


def test_the_limit_for_foreign_images_is_taken_from_one_half_and_applied_to_the_other():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 3)).astype(np.float32)
    found = calibrate(predictions_of(logits, logits.argmax(1)))
    sums = np.log(np.exp(logits.astype(float)).sum(1))
    assert log_sum_exp(logits) == pytest.approx(sums)
    assert (sums >= found.foreign_below).mean() == pytest.approx(0.95, abs=1e-3)
    assert found.foreign is not None and 3 < found.foreign.share < 7
    # one half differs from the other: its own limit would keep 95 %, the other half's keeps all or nearly none
    apart = logits + np.where(np.arange(4000) % 2, 9, 0)[:, None].astype(np.float32)
    moved = calibrate(predictions_of(apart, apart.argmax(1)))
    assert moved.foreign is not None and moved.foreign.share == pytest.approx(50, abs=3)
