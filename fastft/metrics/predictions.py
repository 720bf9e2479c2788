"""The predictions of a model for the images of a file."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Predictions:
    """Predictions for N images, in the order of the file.

    labels_N, predicted_N: int64. confidence_N, truth_N: float32, softmax probability of the predicted and of the true class.
    logits_NK: float32, or None if they were not kept.
    """

    labels_N: np.ndarray
    predicted_N: np.ndarray
    confidence_N: np.ndarray
    truth_N: np.ndarray
    num_classes: int
    logits_NK: np.ndarray | None = None

    @property
    def right_N(self) -> np.ndarray:
        """bool (N,): whether the prediction is the label."""
        return self.predicted_N == self.labels_N

    @staticmethod
    def from_logits(logits_NK: np.ndarray, labels_N: np.ndarray) -> "Predictions":
        predicted_N, rows = logits_NK.argmax(1), np.arange(len(labels_N))
        shifted = logits_NK.astype(np.float64) - logits_NK.max(1, keepdims=True, initial=-np.inf)
        total_N = np.exp(shifted).sum(1)
        truth_N = (np.exp(shifted[rows, labels_N]) / total_N).astype(np.float32)
        confidence_N = (1 / total_N).astype(np.float32)
        return Predictions(labels_N, predicted_N, confidence_N, truth_N, logits_NK.shape[1], logits_NK)
