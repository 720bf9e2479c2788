"""How a model does on each class, from its predictions, with the names of classes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastft.evaluate.mistakes import class_name
from fastft.run.calibration import Calibration, calibrate
from fastft.run.metrics import (
    ClassMetrics,
    Predictions,
    balanced_accuracy,
    class_metrics,
    confusion_counts,
    largest_confusions,
    macro_f1,
)

MATRIX_CLASSES = 100  # above, the confusion matrix is left out
LISTED_CLASSES = 200  # those with the lowest F1


@dataclass(frozen=True)
class ClassRow:
    """Metrics of one class, and the class that most of its other images are predicted as ("" if none)."""

    name: str
    metrics: ClassMetrics
    confused_with: str
    confused: int


@dataclass(frozen=True)
class ClassReport:
    """balanced_accuracy, macro_f1 in percent. matrix_KK: images of class i (row) that are predicted as class j (column).

    names: of all outputs. rows: at most LISTED_CLASSES that have images, lowest F1 first; `classes` counts all that have.
    """

    names: list[str]
    rows: list[ClassRow]
    classes: int
    balanced_accuracy: float
    macro_f1: float
    matrix_KK: np.ndarray | None
    calibration: Calibration


def report_classes(predictions: Predictions, names: Sequence[str]) -> ClassReport:
    """names: by label; a class without a name is called "class k"."""
    every = [class_name(names, label) for label in range(predictions.num_classes)]
    most_confused = {c.label: c for c in reversed(largest_confusions(predictions, len(predictions.labels_N)))}
    rows = []
    for metrics in class_metrics(predictions):
        if metrics.images:
            found = most_confused.get(metrics.label)
            rows.append(ClassRow(
                every[metrics.label], metrics, every[found.predicted] if found else "", found.images if found else 0
            ))  # fmt: skip
    rows.sort(key=lambda row: (row.metrics.f1 or 0.0, row.name))
    return ClassReport(
        names=every,
        rows=rows[:LISTED_CLASSES],
        classes=len(rows),
        balanced_accuracy=balanced_accuracy(predictions),
        macro_f1=macro_f1(predictions),
        matrix_KK=confusion_counts(predictions) if predictions.num_classes <= MATRIX_CLASSES else None,
        calibration=calibrate(predictions),
    )
