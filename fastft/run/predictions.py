"""Metrics for a model's predictions, per class and over classes, their calibration, class sizes, and `validation.npz`.

SciPy, and scikit-learn for label sets, are imported where they are used: they take a second, and only evaluations need
them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from msgspec import structs

from beton_tools.base.atomic import atomic_path
from beton_tools.base.errors import CORRECT, report_disk_errors
from beton_tools.base.typed_json import Document
from fastft.run.evaluations import BALANCED_ACCURACY, MAP, TOP1, BestBy

IMBALANCED = 10.0  # above this ratio between class sizes, balanced accuracy compares epochs and weights
EVEN = 0.5  # threshold for a label without images
HALVES = slice(0, None, 2), slice(1, None, 2)  # cross-fitting: each half is measured with what the other gives
REJECTED_BELOW = 0.5, 0.7, 0.9, 0.95  # values of --min-probability shown in a report
KEEPS = 0.95  # share of the validation images that --reject-foreign keeps
BINS = 15  # bins with equal widths, as in the paper
LOG_TEMPERATURES = (-4.0, 4.0)  # search range, for logits
LOG_TEMPERATURE_SPREAD = 0.18  # standard deviation of the prior around 0: docs/measurements/photos.md, Probabilities


@dataclass(frozen=True)
class Predictions:
    """Predictions for N images, in the order of the file.

    Multi-label: `thresholds_K` apply to the sigmoids, and all arrays are (N, K). labels_N and predicted_N are bool, and
    confidence_N and truth_N are the probability of each label.

    Attributes:
        labels_N, predicted_N: int64.
        confidence_N, truth_N: float32, softmax probability of the predicted and of the true class.
        logits_NK: float32, or None if they were not kept.
    """

    labels_N: np.ndarray
    predicted_N: np.ndarray
    confidence_N: np.ndarray
    truth_N: np.ndarray
    num_classes: int
    logits_NK: np.ndarray | None = None
    thresholds_K: np.ndarray | None = None

    @classmethod
    def of_sets(cls, labels: np.ndarray, logits: np.ndarray, thresholds: Sequence[float] = ()) -> "Predictions":
        """Make multi-label predictions. labels: bool (N, K). thresholds: K, by default from `fit_thresholds`."""
        shares = sigmoid(logits)
        of_class = np.array(thresholds) if thresholds else fit_thresholds(labels, shares)
        return cls(labels, shares >= of_class, shares, shares, labels.shape[1], logits, of_class)

    def fair_f1(self, fitted: bool) -> float:
        """Return multi-label macro F1.

        If the thresholds were fitted to these images, each half uses the other half's thresholds.
        """
        predicted = self.predicted_N.copy()
        for own, other in (HALVES, HALVES[::-1]) if fitted else ():
            predicted[own] = self.confidence_N[own] >= fit_thresholds(self.labels_N[other], self.confidence_N[other])
        return macro_f1(replace(self, predicted_N=predicted))

    @property
    def right_N(self) -> np.ndarray:
        """True where the prediction equals the label, bool (N,), or where each label is right, (N, K)."""
        return self.predicted_N == self.labels_N

    @property
    def outcomes_N(self) -> np.ndarray:
        """The events whose probability is `confidence_N`: that a prediction is right, or each label if multi-label."""
        return self.right_N if self.thresholds_K is None else self.labels_N


class ClassMetrics(Document, kw_only=True):
    """Metrics of one class in percent.

    Attributes:
        precision: None if the class is never predicted.
        recall, f1: None without images.
        average_precision, threshold: multi-label. average_precision is None without images.
    """

    label: int
    images: int
    precision: float | None
    recall: float | None
    f1: float | None
    average_precision: float | None = None
    threshold: float | None = None


def _class_counts(p: Predictions) -> list[np.ndarray]:
    """Return int64 (K,) each: images of a class, predictions of it, and correct predictions."""
    if p.thresholds_K is not None:
        return [p.labels_N.sum(0), p.predicted_N.sum(0), (p.labels_N & p.predicted_N).sum(0)]
    counted = p.labels_N, p.predicted_N, p.labels_N[p.right_N]
    return [np.bincount(labels, minlength=p.num_classes) for labels in counted]


def balanced_accuracy(p: Predictions) -> float:
    """Return the mean recall over the classes that have images, in percent: scikit-learn's balanced_accuracy_score."""
    true_K, _, right_K = _class_counts(p)
    return 100 * float((right_K[true_K > 0] / true_K[true_K > 0]).mean())


def balanced_weights(labels_N: np.ndarray) -> np.ndarray:
    """Return the points of balanced accuracy that each image counts for, float64 (N,). labels_N: int64 (N,).

    Their sum is 100.
    """
    counts = np.bincount(labels_N)
    return 100 / ((counts > 0).sum() * counts[labels_N])


def macro_f1(p: Predictions) -> float:
    """Return the mean F1 over the classes that have images or are predicted. For label sets, those that have images.

    scikit-learn calls it average="macro".
    """
    true_K, predicted_K, right_K = _class_counts(p)
    both_K = true_K + predicted_K
    counted_K = (both_K if p.thresholds_K is None else true_K) > 0
    return 100 * float((2 * right_K[counted_K] / both_K[counted_K]).mean()) if counted_K.any() else 0.0


def class_metrics(p: Predictions) -> list[ClassMetrics]:
    """Return the metrics of every class, by label."""
    true_K, predicted_K, right_K = _class_counts(p)
    with np.errstate(invalid="ignore"):
        columns = right_K / predicted_K, right_K / true_K, 2 * right_K / (true_K + predicted_K), true_K
    metrics = [
        ClassMetrics(
            label=label,
            images=int(images),
            precision=_percent(precision),
            recall=_percent(recall),
            f1=_percent(f1) if images else None,
        )
        for label, (precision, recall, f1, images) in enumerate(zip(*columns, strict=True))
    ]
    if p.thresholds_K is None:
        return metrics
    more = zip(metrics, average_precisions(p), 100 * p.thresholds_K, strict=True)
    return [structs.replace(one, average_precision=_percent(ap), threshold=float(t)) for one, ap, t in more]


# multi-label ----------------------------------------------------------------------------------------------------------


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(logits, -80, 80)))


def average_precisions(p: Predictions) -> np.ndarray:
    """Return float64 (K,), NaN for classes without images: scikit-learn's average_precision_score."""
    from sklearn.metrics import average_precision_score

    pairs = zip(p.labels_N.T, p.confidence_N.T, strict=True)
    return np.array([average_precision_score(y, scores) if y.any() else np.nan for y, scores in pairs])


def mean_average_precision(p: Predictions) -> float:
    """Return the mean average precision in percent, over the classes that have images."""
    return 100 * float(np.nanmean(average_precisions(p))) if p.labels_N.any() else 0.0


def fit_thresholds(labels_NK: np.ndarray, probabilities_NK: np.ndarray) -> np.ndarray:
    """Fit a threshold per class, float64 (K,).

    It is the one with the largest F1, moved half way to the next lower probability. Classes without images get EVEN.
    """
    from sklearn.metrics import precision_recall_curve

    chosen_K = np.full(labels_NK.shape[1], EVEN)
    for k in np.flatnonzero(labels_NK.any(0)).tolist():
        precision, recall, thresholds = precision_recall_curve(labels_NK[:, k], probabilities_NK[:, k])
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        best = int(f1[:-1].argmax())
        chosen_K[k] = (thresholds[best] + (thresholds[best - 1] if best else 0)) / 2
    return chosen_K


def confusion_counts(p: Predictions) -> np.ndarray:
    """Return int64 (K, K): images of class i (row) that are predicted as class j (column)."""
    cells = np.bincount(p.labels_N * p.num_classes + p.predicted_N, minlength=p.num_classes**2)
    return cells.reshape(p.num_classes, p.num_classes)


def largest_confusions(p: Predictions) -> list[list[int]]:
    """Return [class, wrong prediction, images] for each pair that occurs, the most frequent first."""
    wrong = ~p.right_N
    pairs = np.stack([p.labels_N[wrong], p.predicted_N[wrong]])
    pairs, images = np.unique(pairs, axis=1, return_counts=True)
    return np.vstack([pairs, images]).T[np.argsort(-images, kind="stable")].tolist()


def _percent(value: float) -> float | None:
    return None if np.isnan(value) else 100 * float(value)


def deciding_score(multi_label: bool, class_counts: Sequence[int]) -> BestBy:
    """Return the score that compares epochs and weights. class_counts: training images by label."""
    present = [count for count in class_counts if count] or [1]
    return MAP if multi_label else BALANCED_ACCURACY if max(present) > IMBALANCED * min(present) else TOP1


def describe_imbalance(class_counts: Sequence[int]) -> str:
    present = [count for count in class_counts if count]
    return (
        f"classes have {min(present):,} to {max(present):,} training images, so balanced accuracy compares epochs and weights. "
        "--logit-adjustment of fastft eval, predict and export corrects for the class sizes"
    )


# calibration: expected calibration error, reliability diagram, temperature scaling (Guo et al. 2017, 1706.04599) ------


@dataclass(frozen=True)
class Reliability:
    """Images by confidence: their number, mean confidence and accuracy in each bin. Fractions of 1, 0 in empty bins."""

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

    share: rejected images, in percent. kept: number of the others. right: their accuracy in percent, None without any.
    low, high: its 95 % interval (Wilson), in percent.
    """

    value: float
    share: float
    kept: int
    right: float | None
    low: float
    high: float


@dataclass(frozen=True)
class Calibration:
    """Reliability of the softmax, before and after temperature scaling. The latter is None if the logits were not kept.

    Attributes:
        temperature: fits all images. Logits are to be divided by it.
        scaled: cross-fitted: each half of the images is scaled by the temperature that fits the other half.
        rejected: for each REJECTED_BELOW, with `scaled`.
        foreign: of `foreign_below`, cross-fitted like `scaled`. None if the logits were not kept.
        foreign_below: the logits' log-sum-exp that KEEPS of all images reach.
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


def log_sum_exp(logits_NK: np.ndarray) -> np.ndarray:
    """Return how much the logits say that an image is like the training images, float64 (N,).

    It tells foreign images better than the highest probability does, which only compares the classes with each other
    (docs/measurements/photos.md, None of these). Liu et al. 2020 (2010.03759) call its negative the energy.
    """
    sums: np.ndarray = np.logaddexp.reduce(logits_NK.astype(np.float64), 1)
    return sums


def reached_by(sums_N: np.ndarray) -> float:
    """Return the value that KEEPS of the images reach."""
    return float(np.quantile(sums_N, 1 - KEEPS))


def reject(confidence_N: np.ndarray, right_N: np.ndarray) -> tuple[Rejected, ...]:
    """Return the outcome of each REJECTED_BELOW."""
    return tuple(_rejected(value, confidence_N >= value, right_N) for value in REJECTED_BELOW)


def _rejected(value: float, kept_N: np.ndarray, right_N: np.ndarray) -> Rejected:
    from scipy.stats import binomtest  # type: ignore[import-untyped]

    kept, right = int(kept_N.sum()), int(right_N[kept_N].sum())
    low, high = binomtest(right, kept).proportion_ci(method="wilson") if kept else (0.0, 1.0)
    accuracy = 100 * right / kept if kept else None
    return Rejected(value, 100 * (1 - kept / len(right_N)), kept, accuracy, 100 * float(low), 100 * float(high))


def reliability(confidence_N: np.ndarray, right_N: np.ndarray) -> Reliability:
    """Sort confidences into bins. Both arrays have the same shape, which may be any."""
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
        logs: smallest and largest logarithm of the temperature.
        spread: standard deviation of its normal prior around 0.
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


# validation.npz of a run directory: what the run predicts for its validation images, at its last evaluation ----------------

# multi-label: labels and predictions are bool (N, K)
# arrays: epoch; labels (N,); for `raw` and `ema` weights `<weights>_predicted` (N,), and `<weights>_logits` (N, K) if the
# evaluation kept them; in the order of the validation file
VALIDATION = "validation.npz"


def write_validation(folder: Path, epoch: int, predictions: Mapping[str, Predictions]) -> None:
    """Replace the run's file. predictions: by weights, "raw" and "ema". Raises UserError: the disk is full or fails."""
    arrays = {"epoch": np.array(epoch)}
    for weights, of_weights in predictions.items():
        arrays["labels"] = of_weights.labels_N
        arrays[f"{weights}_predicted"] = of_weights.predicted_N
        if of_weights.logits_NK is not None:
            arrays[f"{weights}_logits"] = of_weights.logits_NK
    path = folder / VALIDATION
    with report_disk_errors(path, CORRECT), atomic_path(path) as partial:
        np.savez_compressed(partial, **arrays)  # type: ignore[arg-type]
