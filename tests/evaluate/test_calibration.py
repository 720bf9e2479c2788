"""Calibration errors are binned as by scikit-learn; temperatures are found; what rejection leaves."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from fastft.evaluate.calibration import BINS, calibrate, fit_temperature, reject, reliability
from fastft.evaluate.metrics import predict_sets, sigmoid
from fastft.run.predictions import Predictions, log_sum_exp
from tests.written import predictions_of


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


def test_calibration_is_of_all_labels() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 3)).astype(np.float32) * 2
    labels = rng.random(logits.shape) < sigmoid(logits)
    right, wrong = (calibrate(predict_sets(labels, factor * logits)).plain for factor in (1, 3))
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
