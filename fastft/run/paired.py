"""Compare two models on the same images, image by image."""

import math
from typing import NamedTuple

import numpy as np

from fastft.run.evaluations import Paired

SIGNIFICANT = 0.05


def compare_predictions(first: np.ndarray, second: np.ndarray, labels_N: np.ndarray | None = None) -> Paired:
    """Count images where only one of two models is right, or has more labels right. Both see the same images.

    Args:
        first, second: bool (N,), or multi-label (N, K): whether each model is right.
        labels_N: int64 (N,). If given, the gain in balanced accuracy is computed too.
    """
    first_N, second_N = (right if right.ndim == 1 else right.sum(1) for right in (first, second))
    gain = error = None
    if labels_N is not None:
        signed_N = balanced_weights(labels_N) * (first_N.astype(int) - second_N.astype(int))
        gain, error = float(signed_N.sum()), float(np.sqrt((signed_N**2).sum()))
    return Paired(
        first_only=int((first_N > second_N).sum()), second_only=int((second_N > first_N).sum()),
        balanced_gain=gain, balanced_error=error,
    )  # fmt: skip


def mcnemar(first_only: int, second_only: int) -> float:
    """Return McNemar's exact two-sided p-value (1947) for the hypothesis that two models are equally good.

    first_only, second_only: on how many images only one of them is right.
    """
    from scipy.special import bdtr  # type: ignore[import-untyped]  # scipy.stats takes half a second to import

    return min(1.0, 2 * float(bdtr(min(first_only, second_only), first_only + second_only, 0.5)))


class Comparison(NamedTuple):
    """One model's lead over another on the same images, in points of `measure`, and the p-value that they are equal.

    error: the gain's standard error. images: how many both saw.
    """

    measure: str
    gain: float
    error: float
    p_value: float
    images: int

    @classmethod
    def of(cls, paired: Paired, images: int, measure: str) -> "Comparison":
        """Compare the first model with the second, by balanced accuracy if it is there.

        Its p-value is a normal approximation with images weighted by class.
        """
        if paired.balanced_gain is not None and paired.balanced_error is not None:
            gain, error = paired.balanced_gain, paired.balanced_error
            p_value = 1.0 if error == 0 else math.erfc(abs(gain) / error / math.sqrt(2))
            return cls("balanced accuracy", gain, error, p_value, images)
        ours, theirs = paired.first_only, paired.second_only
        variance = (ours + theirs - (ours - theirs) ** 2 / images) / images**2
        gain, error = 100 * (ours - theirs) / images, 100 * math.sqrt(variance)
        return cls(measure, gain, error, mcnemar(ours, theirs), images)


def balanced_weights(labels_N: np.ndarray) -> np.ndarray:
    """Return the points of balanced accuracy that each image counts for, float64 (N,). labels_N: int64 (N,).

    Their sum is 100.
    """
    counts = np.bincount(labels_N)
    return 100 / ((counts > 0).sum() * counts[labels_N])
