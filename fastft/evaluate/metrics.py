"""Metrics for predictions (per class and over classes), multi-label thresholds, and confusions.

scikit-learn is imported where it is used: it takes a second, and only label sets need it.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from msgspec import structs

from beton_tools.base.typed_json import Document
from fastft.run.predictions import Predictions

EVEN = 0.5  # threshold for a label without images
HALVES = slice(0, None, 2), slice(1, None, 2)  # cross-fitting: each half is scored with the other half's thresholds


class ClassMetrics(Document, kw_only=True):
    """One class's metrics, in percent.

    Attributes:
        precision: None if the class is never predicted.
        recall, f1: None without images.
        average_precision, threshold: only for multi-label files. average_precision is None without images.
    """

    label: int
    images: int
    precision: float | None
    recall: float | None
    f1: float | None
    average_precision: float | None = None
    threshold: float | None = None


def _class_counts(p: Predictions) -> list[np.ndarray]:
    """Count each class's images, predictions and correct predictions: three int64 arrays (K,)."""
    if p.thresholds_K is not None:
        return [p.labels_N.sum(0), p.predicted_N.sum(0), (p.labels_N & p.predicted_N).sum(0)]
    counted = p.labels_N, p.predicted_N, p.labels_N[p.right_N]
    return [np.bincount(labels, minlength=p.num_classes) for labels in counted]


def balanced_accuracy(p: Predictions) -> float:
    """Return the mean recall over the classes that have images, in percent: scikit-learn's balanced_accuracy_score."""
    true_K, _, right_K = _class_counts(p)
    return 100 * float((right_K[true_K > 0] / true_K[true_K > 0]).mean())


def macro_f1(p: Predictions) -> float:
    """Return the mean F1 over the classes that have images or are predicted. Label sets: only classes that have images.

    scikit-learn calls it average="macro".
    """
    true_K, predicted_K, right_K = _class_counts(p)
    both_K = true_K + predicted_K
    counted_K = (both_K if p.thresholds_K is None else true_K) > 0
    return 100 * float((2 * right_K[counted_K] / both_K[counted_K]).mean()) if counted_K.any() else 0.0


def class_metrics(p: Predictions) -> list[ClassMetrics]:
    """Return every class's metrics, by label."""
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


def _percent(value: float) -> float | None:
    return None if np.isnan(value) else 100 * float(value)


def confusion_counts(p: Predictions) -> np.ndarray:
    """Count images by true class (row) and predicted class (column), int64 (K, K)."""
    cells = np.bincount(p.labels_N * p.num_classes + p.predicted_N, minlength=p.num_classes**2)
    return cells.reshape(p.num_classes, p.num_classes)


def largest_confusions(p: Predictions) -> list[list[int]]:
    """Return [class, wrong prediction, images] for each pair that occurs, the most frequent first."""
    wrong = ~p.right_N
    pairs = np.stack([p.labels_N[wrong], p.predicted_N[wrong]])
    pairs, images = np.unique(pairs, axis=1, return_counts=True)
    return np.vstack([pairs, images]).T[np.argsort(-images, kind="stable")].tolist()


# multi-label ----------------------------------------------------------------------------------------------------------


def predict_sets(labels_NK: np.ndarray, logits_NK: np.ndarray, thresholds: Sequence[float] = ()) -> Predictions:
    """Make multi-label predictions. labels_NK: bool. thresholds: K, by default from `fit_thresholds`."""
    shares_NK = sigmoid(logits_NK)
    of_class = np.array(thresholds) if thresholds else fit_thresholds(labels_NK, shares_NK)
    return Predictions(labels_NK, shares_NK >= of_class, shares_NK, shares_NK, labels_NK.shape[1], logits_NK, of_class)


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

    It is the threshold with the largest F1, moved half way to the next lower probability. Classes without images get
    EVEN.
    """
    from sklearn.metrics import precision_recall_curve

    chosen_K = np.full(labels_NK.shape[1], EVEN)
    for k in np.flatnonzero(labels_NK.any(0)).tolist():
        precision, recall, thresholds = precision_recall_curve(labels_NK[:, k], probabilities_NK[:, k])
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        best = int(f1[:-1].argmax())
        chosen_K[k] = (thresholds[best] + (thresholds[best - 1] if best else 0)) / 2
    return chosen_K


def cross_fitted_f1(p: Predictions) -> float:
    """Return multi-label macro F1 when each half of the images uses the thresholds that fit the other half."""
    predicted = p.predicted_N.copy()
    for own, other in (HALVES, HALVES[::-1]):
        predicted[own] = p.confidence_N[own] >= fit_thresholds(p.labels_N[other], p.confidence_N[other])
    return macro_f1(replace(p, predicted_N=predicted))
