"""A model's predictions for each image in a set, and `validation.npz`, which stores them for a run's validation images.

Scores and metrics that follow from predictions are in `fastft.evaluate`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from beton_tools.base.atomic import atomic_path
from beton_tools.base.errors import CORRECT, report_disk_errors

KEEPS = 0.95  # --reject-foreign keeps this fraction of the validation images


@dataclass(frozen=True)
class Predictions:
    """Predictions for N images, in file order.

    For multi-label files, `thresholds_K` apply to the sigmoids, and all arrays are (N, K). labels_N and predicted_N are
    bool, and confidence_N and truth_N are each label's probability.

    Attributes:
        labels_N, predicted_N: int64.
        confidence_N, truth_N: float32, softmax probabilities for the predicted and the true class.
        logits_NK: float32, or None if they were not kept.
    """

    labels_N: np.ndarray
    predicted_N: np.ndarray
    confidence_N: np.ndarray
    truth_N: np.ndarray
    num_classes: int
    logits_NK: np.ndarray | None = None
    thresholds_K: np.ndarray | None = None

    @property
    def right_N(self) -> np.ndarray:
        """True where the prediction equals the label, bool (N,), or where each label is right, (N, K)."""
        return self.predicted_N == self.labels_N

    @property
    def outcomes_N(self) -> np.ndarray:
        """The events whose probability is `confidence_N`: a prediction is right. Multi-label: a label applies."""
        return self.right_N if self.thresholds_K is None else self.labels_N


def log_sum_exp(logits_NK: np.ndarray) -> np.ndarray:
    """Return the logits' log-sum-exp, float64 (N,). It is high for images that resemble the training images.

    It finds foreign images better than the highest probability does, which only compares the classes with each other
    (docs/measurements/photos.md, None of these). Liu et al. 2020 (2010.03759) call its negative the energy.
    """
    sums: np.ndarray = np.logaddexp.reduce(logits_NK.astype(np.float64), 1)
    return sums


def reached_by(sums_N: np.ndarray) -> float:
    """Return the value that a fraction KEEPS of the images reaches."""
    return float(np.quantile(sums_N, 1 - KEEPS))


# a run directory's validation.npz: what the run predicts for its validation images, at its last evaluation -----------------

# Arrays: epoch, and in the validation file's order labels (N,) and, for `raw` and `ema` weights, `<weights>_predicted` (N,)
# and, if the evaluation kept them, `<weights>_logits` (N, K). For multi-label files, labels and predictions are bool (N, K).
VALIDATION = "validation.npz"


def write_validation(folder: Path, epoch: int, predictions: Mapping[str, Predictions]) -> None:
    """Replace the run's file. predictions: by weights, "raw" and "ema". Raises UserError if the disk is full or fails."""
    arrays = {"epoch": np.array(epoch)}
    for weights, of_weights in predictions.items():
        arrays["labels"] = of_weights.labels_N
        arrays[f"{weights}_predicted"] = of_weights.predicted_N
        if of_weights.logits_NK is not None:
            arrays[f"{weights}_logits"] = of_weights.logits_NK
    path = folder / VALIDATION
    with report_disk_errors(path, CORRECT), atomic_path(path) as partial:
        np.savez_compressed(partial, **arrays)  # type: ignore[arg-type]


def read_validation(folder: Path) -> dict[str, np.ndarray]:
    """Return the arrays in a run's file. Empty if there is none, or if it is damaged."""
    try:
        with np.load(folder / VALIDATION) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, BadZipFile):
        return {}
