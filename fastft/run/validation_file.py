"""`validation.npz` of a run directory: what the run predicts for its validation images, at its last evaluation.

Arrays: epoch; labels (N,); for `raw` and `ema` weights `<weights>_predicted` (N,), and `<weights>_logits` (N, K) if the
evaluation kept them. In the order of the validation file.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from beton_tools.base.atomic import atomic_path
from beton_tools.base.errors import UserError
from fastft.run.metrics import Predictions

FILE = "validation.npz"


@dataclass(frozen=True)
class ValidationPredictions:
    """labels_N, predicted_N: int64 (N,)."""

    epoch: int
    labels_N: np.ndarray
    predicted_N: np.ndarray


def write_validation(folder: Path, epoch: int, predictions: Mapping[str, Predictions]) -> None:
    """Replace the run's file. predictions: by weights, "raw" and "ema".

    Raises:
        UserError: the disk is full or fails.
    """
    arrays = {"epoch": np.array(epoch)}
    for weights, of_weights in predictions.items():
        arrays["labels"] = of_weights.labels_N
        arrays[f"{weights}_predicted"] = of_weights.predicted_N
        if of_weights.logits_NK is not None:
            arrays[f"{weights}_logits"] = of_weights.logits_NK
    try:
        with atomic_path(folder / FILE) as partial:
            np.savez_compressed(partial, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        raise UserError(
            f"{folder / FILE} could not be written: {error.strerror or error}; free some space and run again"
        ) from None


def read_validation(folder: Path, weights: str) -> ValidationPredictions:
    """Read the predictions of the "raw" or "ema" weights of a run.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    path = folder / FILE
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return ValidationPredictions(
                int(arrays["epoch"]), arrays["labels"], arrays[f"{weights}_predicted"]
            )
    except (OSError, KeyError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read ({error}); delete {folder} and run again") from None
