"""The result of a search, and an accuracy that the choice does not flatter: of a test set, or corrected by a bootstrap."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastft.evaluate.evaluation import predict_file
from fastft.recipe import Recipe
from fastft.recipe.constants import RAW
from fastft.run.evaluations import BALANCED_ACCURACY, TOP1
from fastft.run.prediction_metrics import balanced_weights
from fastft.search.runs import PlannedRun
from fastft.search.settings import Setting

BALANCED = "balanced_"  # before the names of figures
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
class Result:
    """A search so far. skipped: (setting, epochs) that did not fit into the budget.

    complete: whether the best setting was trained in full. figures: see `measure`. optimism: see `optimism`; None with a test
    file.
    """

    recipe: Recipe
    layers: int
    rungs: Sequence[int]
    trials: list[ShortRun]
    best: ShortRun
    skipped: list[tuple[Setting, int]]
    complete: bool
    spent: float
    figures: dict[str, Any] | None = None
    optimism: float | None = None
    test: Path | None = None


def measure(tuned: Path, default: Path | None, test: Path, device: str, shared: int) -> dict[str, Any]:
    """Figures of the tuned run. default: run directory of the recipe's own setting; `tuned` itself if that is the best.

    Raises UserError: the test file cannot be read.
    """
    _, found = predict_file(tuned, test, device)
    own = found if default == tuned else None if default is None else predict_file(default, test, device)[1]
    return {"shared": shared, **compare(found.labels_N, found.right_N, None if own is None else own.right_N)}


def compare(labels_N: np.ndarray, right_N: np.ndarray, default_right_N: np.ndarray | None) -> dict[str, Any]:
    """Figures from which images are classified correctly: bool (N,), of the tuned run and of the recipe's own setting.

    images: N. Of top-1, and with the prefix `BALANCED` of balanced accuracy: the accuracy in percent, that of the recipe's own
    setting, the gain over it in points, image by image on the same images, and standard errors. Without a second run None.
    """
    figures: dict[str, Any] = {"images": len(labels_N)}
    for name, prefix, groups_N in ((TOP1, "", np.zeros_like(labels_N)), (BALANCED_ACCURACY, BALANCED, labels_N)):
        figures[name], figures[f"{prefix}standard_error"] = _mean_and_error(right_N, groups_N)
        default = gain = gain_error = None
        if default_right_N is not None:
            default, _ = _mean_and_error(default_right_N, groups_N)
            gain, gain_error = _mean_and_error(right_N.astype(int) - default_right_N, groups_N)
        figures |= {f"default_{name}": default, f"{prefix}gain": gain, f"{prefix}gain_standard_error": gain_error}
    return figures


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
