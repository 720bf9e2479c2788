"""An accuracy that the choice of the setting does not flatter: of a test set, or corrected by a bootstrap."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fastft.evaluate.evaluation import predict_file
from fastft.run.metrics import balanced_weights

REPEATS = 1000
SEED = 0


@dataclass(frozen=True)
class FinalFigures:
    """Top-1 and balanced accuracy of the tuned run on a test file in percent, and its gain over the recipe's own setting.

    Gains are in points, image by image on the same images; None if the recipe's own setting was not trained in full.
    standard_error, default_top1, gain, gain_standard_error: of top-1. shared: images of the test file that are also training or
    validation images.
    """

    images: int
    top1: float
    standard_error: float
    balanced_accuracy: float
    default_top1: float | None = None
    gain: float | None = None
    gain_standard_error: float | None = None
    shared: int = 0
    balanced_standard_error: float = 0.0
    default_balanced_accuracy: float | None = None
    balanced_gain: float | None = None
    balanced_gain_standard_error: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure(tuned: Path, default: Path | None, test: Path, device: str) -> FinalFigures:
    """Figures of the tuned run. default: run directory of the recipe's own setting; `tuned` itself if that is the best.

    Raises:
        UserError: the test file cannot be read.
    """
    _, found = predict_file(tuned, test, device)
    if default is None:
        return compare(found.labels_N, found.right_N, None)
    right_N = found.right_N if default == tuned else predict_file(default, test, device)[1].right_N
    return compare(found.labels_N, found.right_N, right_N)


def compare(labels_N: np.ndarray, right_N: np.ndarray, default_right_N: np.ndarray | None) -> FinalFigures:
    """Figures from which images are classified correctly: bool (N,), of the tuned run and of the recipe's own setting."""
    together_N = np.zeros_like(labels_N)
    top1, error = _mean_and_error(right_N, together_N)
    balanced, balanced_error = _mean_and_error(right_N, labels_N)
    figures = FinalFigures(len(labels_N), top1, error, balanced, balanced_standard_error=balanced_error)
    if default_right_N is None:
        return figures
    differences_N = right_N.astype(int) - default_right_N
    default_top1, _ = _mean_and_error(default_right_N, together_N)
    default_balanced, _ = _mean_and_error(default_right_N, labels_N)
    gain, gain_error = _mean_and_error(differences_N, together_N)
    balanced_gain, balanced_gain_error = _mean_and_error(differences_N, labels_N)
    return replace(
        figures,
        default_top1=default_top1,
        gain=gain,
        gain_standard_error=gain_error,
        default_balanced_accuracy=default_balanced,
        balanced_gain=balanced_gain,
        balanced_gain_standard_error=balanced_gain_error,
    )


def _mean_and_error(values_N: np.ndarray, groups_N: np.ndarray) -> tuple[float, float]:
    """The mean over groups of their means, and its standard error, in percent.

    groups_N: int64, the labels for balanced accuracy, all equal for top-1. The standard error is computed from the deviations
    from the mean of each group, and in a group of one image from the deviation from the overall mean.
    """
    counts, weights_N = np.bincount(groups_N), balanced_weights(groups_N)
    mean = (weights_N * values_N).sum() / 100
    means = np.bincount(groups_N, values_N) / np.maximum(1, counts)
    spread_N = values_N - np.where(counts > 1, means, mean)[groups_N]
    return 100 * float(mean), float(np.sqrt(((weights_N * spread_N) ** 2).sum()))


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
