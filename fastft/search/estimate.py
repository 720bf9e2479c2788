"""The result of a search, and an accuracy that the choice does not flatter: of a test set, or corrected by a bootstrap."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastft.evaluate.evaluation import evaluate_file
from fastft.recipe import Recipe
from fastft.recipe.constants import RAW
from fastft.run.evaluations import BALANCED_ACCURACY, TOP1
from fastft.run.prediction_metrics import balanced_weights
from fastft.search.runs import PlannedRun
from fastft.search.settings import Setting

REPEATS = 1000
SEED = 0


@dataclass(frozen=True)
class ShortRun:
    """A complete run of a setting, or the error that ended it.

    rung: from 0. score: top-1 or, with very unequal classes, balanced accuracy (`measure`) of the last epoch on the validation
    images in percent; None if it failed. weights: "raw" or "ema", those that the run chose.
    """

    setting: Setting
    rung: int
    epochs: int
    run: PlannedRun
    score: float | None = None
    measure: str = TOP1
    weights: str = RAW
    failure: str | None = None


@dataclass(frozen=True)
class Accuracy:
    """Percent; points for the gain over the recipe's own setting, image by image on the same images, if that was measured."""

    value: float
    standard_error: float
    default: float | None = None
    gain: float | None = None
    gain_standard_error: float | None = None


@dataclass(frozen=True)
class Figures:
    """Accuracy of the tuned run on so many test images, of which `shared` are training or validation images."""

    images: int
    shared: int
    top1: Accuracy
    balanced_accuracy: Accuracy

    def as_dict(self) -> dict[str, float | None]:
        """The numbers by name, for JSON."""
        found: dict[str, float | None] = {"shared": self.shared, "images": self.images}
        for name, prefix, a in ((TOP1, "", self.top1), (BALANCED_ACCURACY, "balanced_", self.balanced_accuracy)):
            found |= {
                name: a.value, f"default_{name}": a.default, f"{prefix}standard_error": a.standard_error,
                f"{prefix}gain": a.gain, f"{prefix}gain_standard_error": a.gain_standard_error,
            }  # fmt: skip
        return found


@dataclass(frozen=True)
class Result:
    """A search so far. skipped: (setting, epochs) that did not fit into the budget.

    complete: whether the best setting was trained in full. optimism: see `optimism`; None with a test file.
    """

    recipe: Recipe
    layers: int
    rungs: Sequence[int]
    trials: list[ShortRun]
    best: ShortRun
    skipped: list[tuple[Setting, int]]
    complete: bool
    spent: float
    figures: Figures | None = None
    optimism: float | None = None
    test: Path | None = None


def measure(tuned: Path, default: Path | None, test: Path, device: str, shared: int) -> Figures:
    """Evaluate the tuned run. default: run directory of the recipe's own setting; `tuned` itself if that is the best.

    Raises UserError: the test file cannot be read.
    """
    found = evaluate_file(tuned, test, device)[1].predictions
    right_N = found.right_N if default == tuned else None
    if default not in (None, tuned):
        right_N = evaluate_file(default, test, device)[1].predictions.right_N
    return compare(found.labels_N, found.right_N, right_N, shared)


def compare(labels_N: np.ndarray, right_N: np.ndarray, default_right_N: np.ndarray | None, shared: int = 0) -> Figures:
    """Figures from which images are classified correctly: bool (N,), of the tuned run and of the recipe's own setting."""

    def accuracy(groups_N: np.ndarray) -> Accuracy:
        own = _mean_and_error(right_N, groups_N)
        if default_right_N is None:
            return Accuracy(*own)
        gain = _mean_and_error(right_N.astype(int) - default_right_N, groups_N)
        return Accuracy(*own, _mean_and_error(default_right_N, groups_N)[0], *gain)

    return Figures(len(labels_N), shared, top1=accuracy(np.zeros_like(labels_N)), balanced_accuracy=accuracy(labels_N))


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
    """How much the best of S settings is flattered by being the best on the same N images, in percentage points; not below 0.

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
    return 100 * max(0.0, float(apparent - np.mean(unseen))) if unseen else 0.0
