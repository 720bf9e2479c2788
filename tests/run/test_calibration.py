"""Calibration errors are those of the binned definition, and temperature scaling finds a known temperature."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from fastft.run.prediction_metrics import BINS, Predictions, calibrate, reliability, usable_temperature
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


def test_a_temperature_is_used_unless_other_images_get_worse_or_it_is_a_limit_of_the_search():
    """Where every image is right, the cross-entropy falls without end towards temperature 0."""
    drawn = calibrated(500, 5, 4.0)
    assert drawn.logits_NK is not None
    for p, used in ((drawn, True), (predictions_of(drawn.logits_NK, drawn.predicted_N), False)):
        found = calibrate(p)
        assert found.temperature is not None and found.scaled is not None
        scores = {"temperature": found.temperature, "ece": found.plain.ece, "ece_scaled": found.scaled.ece}
        assert (usable_temperature(scores) is not None) == used, scores
        assert usable_temperature(scores | {"ece_scaled": scores["ece"]}) is None
    assert usable_temperature({}) is None


def test_without_logits_there_is_no_temperature():
    p = calibrated(100, 3, 1.0)
    found = calibrate(Predictions(p.labels_N, p.predicted_N, p.confidence_N, p.truth_N, 3))
    assert found.temperature is None and found.scaled is None
