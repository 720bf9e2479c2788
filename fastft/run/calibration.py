"""Calibration: expected calibration error, reliability diagram and temperature scaling (Guo et al. 2017, 1706.04599)."""

from dataclasses import dataclass

import numpy as np

from fastft.run.metrics import Predictions

BINS = 15  # equal widths, as in the paper
LOG_TEMPERATURES = (-4.0, 4.0)  # range of the search, for logits
TOLERANCE = 1e-3  # of the logarithm of the temperature


@dataclass(frozen=True)
class Reliability:
    """Images by confidence: their number, mean confidence and accuracy in each bin; shares of 1, 0 in empty bins."""

    images: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def ece(self) -> float:
        """Expected calibration error in percent: mean gap between confidence and accuracy, weighted by images."""
        gaps = np.abs(self.confidence - self.accuracy)
        return 100 * float((self.images * gaps).sum() / max(1, self.images.sum()))


@dataclass(frozen=True)
class Calibration:
    """Reliability of the softmax, and after temperature scaling; the latter is None if the logits were not kept.

    temperature: the one that fits all images; logits are to be divided by it. `scaled` is cross-fitted: each half of the
    images is scaled by the temperature that fits the other half.
    """

    plain: Reliability
    temperature: float | None = None
    scaled: Reliability | None = None


def calibrate(p: Predictions) -> Calibration:
    plain = reliability(p.confidence_N, p.right_N)
    if p.logits_NK is None or len(p.labels_N) < 2:
        return Calibration(plain)
    shifted_NK = p.logits_NK - p.logits_NK.max(1, keepdims=True)
    scaled_N = np.empty(len(p.labels_N))
    halves = slice(0, None, 2), slice(1, None, 2)
    for fitted, applied in (halves, halves[::-1]):
        temperature, _ = fit_temperature(shifted_NK[fitted], p.labels_N[fitted])
        scaled_N[applied] = 1 / np.exp(shifted_NK[applied] / temperature).sum(1)
    temperature, _ = fit_temperature(shifted_NK, p.labels_N)
    return Calibration(plain, temperature, reliability(scaled_N, p.right_N))


def reliability(confidence_N: np.ndarray, right_N: np.ndarray) -> Reliability:
    bins = np.clip(np.ceil(confidence_N * BINS).astype(int) - 1, 0, BINS - 1)  # of intervals (low, high]
    images = np.bincount(bins, minlength=BINS)
    means = (np.bincount(bins, values, BINS) / np.maximum(1, images) for values in (confidence_N, right_N))
    return Reliability(images, *means)


def fit_temperature(
    shifted_NK: np.ndarray, labels_N: np.ndarray, logs: tuple[float, float] = LOG_TEMPERATURES
) -> tuple[float, float]:
    """(temperature with the smallest cross-entropy, that cross-entropy).

    shifted_NK: logits minus the largest one of each image. logs: smallest and largest logarithm of the temperature.
    """
    from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]

    truth_N = shifted_NK[np.arange(len(labels_N)), labels_N]

    def cross_entropy(log_temperature: float) -> float:
        temperature = np.float32(np.exp(log_temperature))
        return float(np.mean(np.log(np.exp(shifted_NK / temperature).sum(1)) - truth_N / temperature))

    found = minimize_scalar(cross_entropy, bounds=logs, method="bounded", options={"xatol": TOLERANCE})
    return float(np.exp(found.x)), float(found.fun)
