"""Ridge regression on pooled features: a linear probe's head, and its predictions for images it was not fitted to."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from beton_tools.base.errors import UserError
from beton_tools.read.sample_table import strata
from fastft.evaluate.calibration import LOG_TEMPERATURES, fit_temperature

# cross-validation folds for the regression
FOLDS = 5
# the penalty's weight, relative to the features' mean variance
PENALTIES = tuple(10.0**exponent for exponent in np.arange(-5, 1.01, 0.5))
# Up to this many classes, the scale has the same range as temperatures. With more, scores are closer and need a larger scale.
CLASSES = 10
SCORED_VALUES = 2**24  # held-out score values kept at a time: 64 MiB
MOST_KEPT = 2**14  # with more images, the features kept to choose penalty and scale: 64 MiB with 1,024 values each
CHUNK = 8192  # rows converted to float64 at a time


@dataclass(frozen=True)
class LabelledFeatures:
    """Training images as pooled features with labels.

    Attributes:
        features_ND: float32.
        labels_N: int64 below num_classes, or (N, num_classes) for multi-label data.
        seed: draws the folds.
        units_N: int64, see `fastft.data.units.units_of`. Images with the same number are never split between folds. If
            None, each image is a unit.
    """

    features_ND: np.ndarray
    labels_N: np.ndarray
    num_classes: int
    seed: int = 0
    units_N: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels_N)

    @cached_property
    def fold_N(self) -> np.ndarray:
        """Fold index for each image, int64 (N,), stratified by class. All images in a unit share a fold.

        A class with a single unit is split image by image, because otherwise no fold could be fitted to it.
        """
        return _split_units(strata(self.labels_N), self._units_N, FOLDS, self.seed)

    @cached_property
    def half_N(self) -> np.ndarray:
        """Boolean mask (N,) that selects half of the images, stratified by class and fold. Units are not split.

        Not for multi-label data.
        """
        return _split_units(self.labels_N * FOLDS + self.fold_N, self._units_N, 2, self.seed) == 0

    @cached_property
    def _units_N(self) -> np.ndarray:
        every_N, strata_N = np.arange(len(self)), strata(self.labels_N)
        if self.units_N is None:
            return every_N
        pairs = np.unique(np.column_stack([strata_N, self.units_N]), axis=0)
        classes, units = np.unique(pairs[:, 0], return_counts=True)
        is_alone_N = np.isin(strata_N, classes[units == 1])
        return np.where(is_alone_N, -1 - every_N, self.units_N)

    def moments(self, rows: np.ndarray) -> "_Moments":
        sums = RidgeSums(self.num_classes, self.features_ND.shape[1], torch.device("cpu"))
        for part in np.split(rows, range(CHUNK, len(rows), CHUNK)):
            sums.add(torch.from_numpy(self.features_ND[part]), torch.from_numpy(self.labels_N[part]))
        return sums.moments()


def _split_units(strata_N: np.ndarray, units_N: np.ndarray, parts: int, seed: int) -> np.ndarray:
    """Assign whole units to parts at random, stratified. Returns a part index for each image, int64 (N,)."""
    order = np.lexsort((np.random.default_rng(seed).permutation(len(strata_N)), strata_N))
    _, first, unit_N = np.unique(units_N[order], return_index=True, return_inverse=True)
    part_U = np.empty(len(first), np.int64)
    part_U[np.argsort(first)] = np.arange(len(first)) % parts
    part_N = np.empty(len(order), np.int64)
    part_N[order] = part_U[unit_N]
    return part_N


@dataclass(frozen=True)
class RidgeHead:
    """weight_KD, bias_K: float32, giving logits. penalty, scale: what the head was made with (see `fit_ridge_head`).

    losses_N, right_N: cross-entropy, and whether the class is right, for images scored by the regression on the other
    folds. These are the images that chose penalty and scale, and only labels and seed determine their order. For
    multi-label data the losses are means over classes, and right_N is (N, K).
    """

    weight_KD: np.ndarray
    bias_K: np.ndarray
    penalty: float
    scale: float
    losses_N: np.ndarray
    right_N: np.ndarray


@dataclass(frozen=True)
class _Moments:
    """Sufficient statistics for ridge regression on one-hot targets. Means and eigenvectors are float64."""

    shares_K: np.ndarray
    mean_D: np.ndarray
    covariance_KD: np.ndarray  # between the one-hot targets and the features
    eigenvalues_D: np.ndarray
    eigenvectors_DD: np.ndarray

    def solve(self, penalty: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the regression's weight (K, D) and bias (K,). The bias is not penalised."""
        variance = self.eigenvalues_D.mean() or 1.0  # the mean is 0 if all rows are the same
        shrunk_D = self.eigenvalues_D + penalty * variance
        weight_KD = (self.covariance_KD @ self.eigenvectors_DD / shrunk_D) @ self.eigenvectors_DD.T
        return weight_KD, self.shares_K - weight_KD @ self.mean_D


class RidgeSums:
    """Sums over images, float64 on the device: images by class, features by class, and products between features."""

    def __init__(self, classes: int, width: int, device: torch.device) -> None:
        shapes = (1,), (width,), (classes,), (classes, width), (width, width)
        self.parts = [torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes]
        self.count, self.sum_D, self.counts_K, self.sums_KD, self.gram_DD = self.parts

    def add(self, features_BD: torch.Tensor, labels_B: torch.Tensor) -> None:
        """labels_B: int64, or (B, K) for multi-label data."""
        exact_BD = features_BD.double()
        one_hot_BK = (F.one_hot(labels_B, len(self.counts_K)) if labels_B.ndim == 1 else labels_B).double()
        self.count += len(exact_BD)
        self.sum_D += exact_BD.sum(0)
        self.counts_K += one_hot_BK.sum(0)
        self.sums_KD += one_hot_BK.T @ exact_BD
        self.gram_DD += exact_BD.T @ exact_BD

    def moments(self) -> _Moments:
        shares_K, mean_D = self.counts_K / self.count, self.sum_D / self.count
        covariance_KD = self.sums_KD / self.count - shares_K[:, None] * mean_D
        variance_DD = self.gram_DD / self.count - mean_D[:, None] * mean_D
        if not variance_DD.isfinite().all():
            raise UserError(
                "the tower gives NaN or Inf for training images. Check model.weights, or set --train.amp=bf16 or fp32"
            )
        shares, mean, covariance = (tensor.cpu().numpy() for tensor in (shares_K, mean_D, covariance_KD))
        return _Moments(shares, mean, covariance, *np.linalg.eigh(variance_DD.cpu().numpy()))


def fit_ridge_head(data: LabelledFeatures) -> RidgeHead:
    """Fit the head to the training images' pooled features.

    For each class the regression estimates the probability of its label, 0 to 1. Used as logits, such scores would give
    almost equal softmax probabilities, so they are multiplied by a scale. For multi-label data 1/2 is subtracted first.
    Penalty and scale give the smallest cross-entropy on images that the regression has not seen. They are found by
    cross-validation in FOLDS parts.

    Memory: num_classes * D values, and D * D for each fold.
    """
    every_N, fold_N = np.arange(len(data)), data.fold_N
    held_out = [np.flatnonzero(fold_N == fold) for fold in np.unique(fold_N)]
    moments = [data.moments(np.setdiff1d(every_N, rows)) for rows in held_out]
    kept = max(1, SCORED_VALUES // data.num_classes // len(held_out))
    rng = np.random.default_rng(data.seed)  # because files are sorted by class
    chosen = [rows if len(rows) <= kept else np.sort(rng.permutation(rows)[:kept]) for rows in held_out]
    scored = [(data.features_ND[rows], data.labels_N[rows]) for rows in chosen]
    return choose_ridge(moments, scored).head(data.moments(every_N), data.labels_N.ndim == 2)


class Ridge(NamedTuple):
    """Penalty and scale for a `RidgeHead`, and the resulting predictions for held-out images."""

    penalty: float
    scale: float
    losses_N: np.ndarray
    right_N: np.ndarray

    def head(self, moments: _Moments, multi_label: bool = False) -> RidgeHead:
        """Return the head fitted to the images behind `moments`."""
        weight_KD, bias_K = moments.solve(self.penalty)
        bias_K = bias_K - multi_label / 2
        return RidgeHead((self.scale * weight_KD).astype(np.float32), (self.scale * bias_K).astype(np.float32), *self)


def choose_ridge(moments: Sequence[_Moments], held_out: Sequence[tuple[np.ndarray, np.ndarray]]) -> Ridge:
    """Choose the penalty and scale with the smallest cross-entropy on the held-out images.

    held_out: (features, labels) for each of the moments.
    """
    labels = np.concatenate([labels_N for _, labels_N in held_out])
    best = None
    for penalty in reversed(PENALTIES):  # the strongest penalty wins a tie
        parts = [_score(m, features_ND, penalty) for m, (features_ND, _) in zip(moments, held_out, strict=True)]
        shifted = _shift(np.concatenate(parts), labels)
        temperature, cross_entropy = _fit_scale(shifted, labels)
        if best is None or cross_entropy < best[0]:
            best = cross_entropy, penalty, 1 / temperature, shifted
    assert best is not None
    _, penalty, scale, shifted = best
    if labels.ndim == 2:
        losses_N, right_N = (
            (np.logaddexp(0, scale * shifted) - labels * scale * shifted).mean(1),
            (shifted > 0) == labels,
        )
    else:
        truth_N = shifted[np.arange(len(labels)), labels]
        losses_N, right_N = np.log(np.exp(scale * shifted).sum(1)) - scale * truth_N, shifted.argmax(1) == labels
    return Ridge(penalty, scale, losses_N, right_N)


@dataclass(frozen=True)
class Mirrored:
    """How many training images a head classifies correctly although it was fitted to others.

    images: training images tried, at most TRIED. plain: right as they are. mirrored: right with left and right exchanged.
    plain_only, mirrored_only: right in only one of the two ways.
    """

    images: int
    plain: int
    mirrored: int
    plain_only: int
    mirrored_only: int


def count_mirrored(data: LabelledFeatures, mirrored_MD: np.ndarray, tried_M: np.ndarray, penalty: float) -> Mirrored:
    """Classify the images `tried_M` by ridge regression on the unmirrored images in the other folds."""
    seen = score_out_of_fold(data, [data.features_ND[tried_M], mirrored_MD], tried_M, penalty)
    plain_M, mirrored_M = (scores_MK.argmax(1) == data.labels_N[tried_M] for scores_MK in seen)
    only = int((plain_M & ~mirrored_M).sum()), int((mirrored_M & ~plain_M).sum())
    return Mirrored(len(tried_M), int(plain_M.sum()), int(mirrored_M.sum()), *only)


def score_out_of_fold(
    data: LabelledFeatures,
    views: Sequence[np.ndarray],
    tried_M: np.ndarray,
    penalty: float,
    fitted_N: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Score views of the images `tried_M` by ridge regression on the unchanged images in the other folds.

    Args:
        views: each is (M, D), the same images' features, such as unchanged and mirrored.
        fitted_N: bool, the images that the regression may be fitted to. None stands for all.

    Returns:
        scores (M, K) for each view, float32.
    """
    fold_N, scores = data.fold_N, [np.empty((len(tried_M), data.num_classes), np.float32) for _ in views]
    for fold in np.unique(fold_N[tried_M]):
        others_N = (fold_N != fold) if fitted_N is None else (fold_N != fold) & fitted_N
        moments = data.moments(np.flatnonzero(others_N))
        rows = fold_N[tried_M] == fold
        for scores_MK, features_MD in zip(scores, views, strict=True):
            scores_MK[rows] = _score(moments, features_MD[rows], penalty)
    return scores


def score_on_halves(data: LabelledFeatures, penalty: float) -> list[np.ndarray]:
    """Return scores (N, K) for all images, twice: by regressions on each half of the images in the other folds."""
    every_N, half_N = np.arange(len(data)), data.half_N
    return [score_out_of_fold(data, [data.features_ND], every_N, penalty, half)[0] for half in (half_N, ~half_N)]


def smallest_loss(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return a ridge regression's cross-entropy, in nats, with its scores at their best scale.

    Args:
        scores: (N, K). labels: int64 (N,), or (N, K) for multi-label data, where the loss is the mean over classes.
    """
    return _fit_scale(_shift(scores, labels), labels)[1]


def _shift(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return scores - (scores.max(1, keepdims=True) if labels.ndim == 1 else 0.5)


def _fit_scale(shifted: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return (temperature with the smallest cross-entropy, that cross-entropy)."""
    smallest, largest = LOG_TEMPERATURES
    return fit_temperature(shifted, labels, (smallest - np.log(max(1, shifted.shape[1] / CLASSES)), largest))


def _score(moments: _Moments, features: np.ndarray, penalty: float) -> np.ndarray:
    """Return scores (n, K)."""
    weight_KD, bias_K = moments.solve(penalty)
    return features @ weight_KD.T.astype(np.float32) + bias_K.astype(np.float32)
