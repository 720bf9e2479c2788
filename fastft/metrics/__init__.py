"""Classification metrics of a model's predictions: per class, over classes, and calibration. Works on NumPy arrays."""

from fastft.metrics.calibration import Calibration, Reliability, calibrate, fit_temperature, reliability
from fastft.metrics.class_metrics import (
    ClassMetrics,
    Confusion,
    balanced_accuracy,
    balanced_weights,
    class_metrics,
    confusion_counts,
    largest_confusions,
    macro_f1,
)
from fastft.metrics.imbalance import IMBALANCED, describe_imbalance, imbalance
from fastft.metrics.predictions import Predictions

__all__ = [
    "IMBALANCED", "Calibration", "ClassMetrics", "Confusion", "Predictions", "Reliability", "balanced_accuracy",
    "balanced_weights", "calibrate", "class_metrics", "confusion_counts", "describe_imbalance", "fit_temperature", "imbalance",
    "largest_confusions", "macro_f1", "reliability",
]  # fmt: skip
