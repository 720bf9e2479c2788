"""An accuracy that the choice of the setting does not flatter: of a test set, or corrected by a bootstrap."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fastft.inference.logits import compute_logits
from fastft.metrics import Predictions, balanced_accuracy

REPEATS = 1000
SEED = 0


@dataclass(frozen=True)
class FinalFigures:
    """Top-1 and balanced accuracy of the tuned run on a test file in percent, and its gain over the recipe's own setting.

    gain: top-1 in points, image by image on the same images; None if the recipe's own setting was not trained in full.
    shared: images of the test file that are also training or validation images.
    """

    images: int
    top1: float
    standard_error: float
    balanced_accuracy: float
    default_top1: float | None = None
    gain: float | None = None
    gain_standard_error: float | None = None
    shared: int = 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure(tuned: Path, default: Path | None, test: Path, device: str) -> FinalFigures:
    """Figures of the tuned run. default: run directory of the recipe's own setting; `tuned` itself if that is the best.

    Raises:
        UserError: the test file cannot be read.
    """
    found = compute_logits(tuned, test, device)
    p = Predictions.from_logits(found.logits_NK, found.labels_N)
    right_N = p.right_N.astype(float)
    top1, error = _mean_and_error(right_N)
    figures = FinalFigures(len(right_N), top1, error, balanced_accuracy(p))
    if default is None:
        return figures
    other_N = right_N
    if default != tuned:
        other = compute_logits(default, test, device)
        other_N = (other.logits_NK.argmax(1) == other.labels_N).astype(float)
    default_top1, _ = _mean_and_error(other_N)
    gain, gain_error = _mean_and_error(right_N - other_N)
    return replace(figures, default_top1=default_top1, gain=gain, gain_standard_error=gain_error)


def _mean_and_error(values_N: np.ndarray) -> tuple[float, float]:
    """The mean and its standard error, in percent."""
    return 100 * float(values_N.mean()), 100 * float(values_N.std()) / len(values_N) ** 0.5


def optimism(right_SN: np.ndarray, weights_N: np.ndarray, repeats: int = REPEATS, seed: int = SEED) -> float:
    """How much the best of S settings is flattered by being the best on the same N images, in percentage points.

    The accuracy of the best setting, less that of a choice which has not seen the images: in each repetition the images are
    resampled with replacement, the best setting on them is chosen, and its accuracy on the images that were not drawn counts
    (bootstrap bias correction, Tsamardinos et al. 2018, 10.1007/s10994-018-5714-4).

    right_SN: bool, whether setting s is right on image n. weights_N: of the images; 1 for top-1, 1 / images of the class for
    balanced accuracy.
    """
    settings, n = right_SN.shape
    if settings < 2:
        return 0.0
    noise, unseen = np.random.default_rng(seed), []
    right_SN = right_SN.astype(np.float64)
    for _ in range(repeats):
        drawn_N = np.bincount(noise.integers(0, n, n), minlength=n)
        unseen_N = drawn_N == 0
        if not unseen_N.any():
            continue
        best = int((right_SN @ (drawn_N * weights_N)).argmax())
        unseen.append(np.average(right_SN[best, unseen_N], weights=weights_N[unseen_N]))
    apparent = (right_SN @ weights_N / weights_N.sum()).max()
    return 100 * float(apparent - np.mean(unseen)) if unseen else 0.0
