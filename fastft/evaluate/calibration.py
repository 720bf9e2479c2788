"""Calibration: expected calibration error, reliability diagram, temperature scaling (Guo et al. 2017, 1706.04599), rejection.

SciPy is imported where it is used, because it takes half a second.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fastft.evaluate.metrics import HALVES
from fastft.run.predictions import Predictions, log_sum_exp, reached_by

REJECTED_BELOW = 0.5, 0.7, 0.9, 0.95  # values of --min-probability shown in a report
BINS = 15  # bins with equal widths, as in the paper
LOG_TEMPERATURES = (-4.0, 4.0)  # search range, for logits
LOG_TEMPERATURE_SPREAD = 0.18  # standard deviation of the prior around 0: docs/measurements/photos.md, Probabilities


@dataclass(frozen=True)
class Reliability:
    """Images by confidence: how many each bin has, their mean confidence and accuracy. Fractions, 0 in empty bins."""

    images: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def ece(self) -> float:
        """Expected calibration error in percent: mean gap between confidence and accuracy, weighted by images."""
        gaps = np.abs(self.confidence - self.accuracy)
        return 100 * float((self.images * gaps).sum() / max(1, self.images.sum()))

    @property
    def ece_by_chance(self) -> float:
        """The `ece` expected from a perfectly calibrated model with these confidences.

        With few images it is far from 0.
        """
        variances = self.images * self.confidence * (1 - self.confidence)
        return 100 * float(np.sqrt(2 / np.pi * variances).sum() / max(1, self.images.sum()))


class Rejected(NamedTuple):
    """The effect of rejecting images whose confidence, or the logits' log-sum-exp, is below `value`.

    share: rejected images, in percent. kept: how many images are left. right: their accuracy in percent, None without any.
    low, high: this accuracy's 95 % interval (Wilson), in percent.
    """

    value: float
    share: float
    kept: int
    right: float | None
    low: float
    high: float


@dataclass(frozen=True)
class Calibration:
    """How reliable the softmax is, before and after temperature scaling. The latter is None if the logits were not kept.

    Attributes:
        temperature: fits all images. Logits are to be divided by it.
        scaled: cross-fitted: each half of the images is scaled by the temperature that fits the other half.
        rejected: the effect of each limit in REJECTED_BELOW, with `scaled`.
        foreign: the effect of `foreign_below`, cross-fitted like `scaled`. None if the logits were not kept.
        foreign_below: a fraction KEEPS of all images reaches this log-sum-exp over its logits.
    """

    plain: Reliability
    temperature: float | None = None
    scaled: Reliability | None = None
    rejected: tuple[Rejected, ...] = ()
    foreign: Rejected | None = None
    foreign_below: float | None = None


def calibrate(p: Predictions) -> Calibration:
    """Calibrate the predictions. Multi-label has no temperature, because it would move the thresholds."""
    plain = reliability(p.confidence_N, p.outcomes_N)
    if p.logits_NK is None or len(p.labels_N) < 2 or p.thresholds_K is not None:
        return Calibration(plain)
    shifted_NK = p.logits_NK - p.logits_NK.max(1, keepdims=True)
    scaled_N = np.empty(len(p.labels_N))
    for fitted, applied in (HALVES, HALVES[::-1]):
        temperature, _ = fit_temperature(shifted_NK[fitted], p.labels_N[fitted], spread=LOG_TEMPERATURE_SPREAD)
        scaled_N[applied] = 1 / np.exp(shifted_NK[applied] / temperature).sum(1)
    temperature, _ = fit_temperature(shifted_NK, p.labels_N, spread=LOG_TEMPERATURE_SPREAD)
    sums_N, kept_N = log_sum_exp(p.logits_NK), np.empty(len(p.labels_N), bool)
    for fitted, applied in (HALVES, HALVES[::-1]):
        kept_N[applied] = sums_N[applied] >= reached_by(sums_N[fitted])
    below = reached_by(sums_N)
    foreign = _rejected(below, kept_N, p.right_N)
    scaled = reliability(scaled_N, p.right_N)
    return Calibration(plain, temperature, scaled, reject(scaled_N, p.right_N), foreign, below)


def reject(confidence_N: np.ndarray, right_N: np.ndarray) -> tuple[Rejected, ...]:
    """Return the effect of each limit in REJECTED_BELOW."""
    return tuple(_rejected(value, confidence_N >= value, right_N) for value in REJECTED_BELOW)


def _rejected(value: float, kept_N: np.ndarray, right_N: np.ndarray) -> Rejected:
    from scipy.stats import binomtest  # type: ignore[import-untyped]

    kept, right = int(kept_N.sum()), int(right_N[kept_N].sum())
    low, high = binomtest(right, kept).proportion_ci(method="wilson") if kept else (0.0, 1.0)
    accuracy = 100 * right / kept if kept else None
    return Rejected(value, 100 * (1 - kept / len(right_N)), kept, accuracy, 100 * float(low), 100 * float(high))


def reliability(confidence_N: np.ndarray, right_N: np.ndarray) -> Reliability:
    """Sort confidences into bins. Both arrays have the same shape, with any number of dimensions."""
    confidence_N, right_N = confidence_N.ravel(), right_N.ravel()
    bins = np.clip(np.ceil(confidence_N * BINS).astype(int) - 1, 0, BINS - 1)  # bins are intervals (low, high]
    images = np.bincount(bins, minlength=BINS)
    means = (np.bincount(bins, values, BINS) / np.maximum(1, images) for values in (confidence_N, right_N))
    return Reliability(images, *means)


def fit_temperature(
    shifted_NK: np.ndarray, labels_N: np.ndarray, logs: tuple[float, float] = LOG_TEMPERATURES, spread: float = math.inf
) -> tuple[float, float]:
    """Return (temperature with the smallest cross-entropy, that cross-entropy).

    Args:
        shifted_NK: logits minus each image's largest one. Multi-label: the logits themselves, with labels_N (N, K).
        logs: the smallest and largest log temperature.
        spread: the standard deviation of the log temperature's normal prior around 0.
    """
    from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]

    truth_N = None if labels_N.ndim == 2 else shifted_NK[np.arange(len(labels_N)), labels_N]

    def cross_entropy(log_temperature: float) -> float:
        temperature, prior = np.float32(np.exp(log_temperature)), (log_temperature / spread) ** 2 / 2 / len(labels_N)
        if truth_N is None:
            return float(np.mean(np.logaddexp(0, shifted_NK / temperature) - labels_N * (shifted_NK / temperature)))
        return float(np.mean(np.log(np.exp(shifted_NK / temperature).sum(1)) - truth_N / temperature)) + prior

    smallest = minimize_scalar(cross_entropy, bounds=logs, method="bounded", options={"xatol": 1e-3})
    return float(np.exp(smallest.x)), float(smallest.fun)
