"""The head of a run that starts from ridge regression on the frozen tower (`model.head_init=probe`).

Fine-tuning from a random head distorts pretrained features while the head is learnt; starting from a linear probe avoids this
(LP-FT, 2202.10054).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from beton_tools.base.errors import UserError
from fastft.augment.recipe_policy import build_policy
from fastft.data import EvalLoader, Output, Shard
from fastft.model import ImageClassifier
from fastft.recipe import Recipe
from fastft.recipe.constants import PROBE
from fastft.run.prediction_metrics import LOG_TEMPERATURES, fit_temperature
from fastft.train.distributed import World
from fastft.train.evaluate import forward
from fastft.train.precision import Precision
from fastft.train.preempt import SignalGuard

MOST_IMAGES = 100_000  # features of 1,024 values take 400 MB; a longer training learns its head anyway

# of the regression
FOLDS = 5
# weight of the penalty, relative to the mean variance of the features
PENALTIES = tuple(10.0**exponent for exponent in np.arange(-5, 1.01, 0.5))
# up to this many classes the scale has the range of temperatures; scores of more are closer together, and need a larger one
CLASSES = 10
SCORED_VALUES = 2**24  # of held-out scores that are kept at a time: 64 MiB
CHUNK = 8192  # rows that are converted to float64 at a time


def refuse_large(recipe: Recipe, images: int) -> None:
    """Raise UserError if the recipe asks for ridge regression on too many images."""
    if recipe.model.head_init == PROBE and images > MOST_IMAGES:
        raise UserError(
            f"model.head_init is probe, but {images:,} training images are more than {MOST_IMAGES:,}, which it is meant for; "
            "set --model.head_init=small"
        )


def set_probe_head(
    model: ImageClassifier, recipe: Recipe, world: World, precision: Precision, batch: int, guard: SignalGuard
) -> dict[str, Any]:
    """Replace the head of `model` by ridge regression on its pooled features of the training images.

    The images are seen as in evaluation. The head is the same in all processes. batch: images per forward pass. Returns for
    the log: images, penalty and scale of `fit_ridge_head`.

    Raises:
        EvaluationStopped: in every process, if a stop was requested in one of them.
    """
    r, output = recipe, Output(recipe.model.image_size, world.device, precision.dtype)
    with EvalLoader(
        str(r.data.train), build_policy(r), output, batch_size=batch,
        shard=Shard(world.rank, world.size), workers=r.data.workers or None, on_wait=guard.check,
    ) as loader:  # fmt: skip
        features_ND, labels_N = pooled_features(model, loader, world, precision, guard.is_stop_requested)
    head = fit_ridge_head(features_ND, labels_N, r.data.num_classes, r.train.seed) if world.is_main else None
    head = world.broadcast(head)
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(head.weight_KD))
        model.head.bias.copy_(torch.from_numpy(head.bias_K))
    return {"images": len(labels_N), "penalty": head.penalty, "scale": head.scale}


@torch.inference_mode()
def pooled_features(
    model: ImageClassifier, loader: EvalLoader, world: World, precision: Precision, stop: Callable[[], bool]
) -> tuple[np.ndarray, np.ndarray]:
    """(float32 (N, D), int64 (N,)): the head's input for every image of the loader's file, and its label."""
    rows = []
    for batch, (features_BD,) in forward([model], loader, world, precision, stop, "pooled"):
        rows.append(torch.cat([batch.labels[:, None].float(), features_BD], dim=1))
    mine = torch.cat(rows) if rows else torch.empty(0, 1, device=world.device)
    table = world.gather_rows(mine).cpu().numpy()
    return table[:, 1:], table[:, 0].astype(np.int64)


# ridge regression on pooled features ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class RidgeHead:
    """weight_KD, bias_K: float32, of logits. penalty, scale: what they were made with; see `fit_ridge_head`."""

    weight_KD: np.ndarray
    bias_K: np.ndarray
    penalty: float
    scale: float


@dataclass(frozen=True)
class _Moments:
    """Sufficient statistics for ridge regression on one-hot targets; means and eigenvectors are float64."""

    shares_K: np.ndarray
    mean_D: np.ndarray
    covariance_KD: np.ndarray  # of the one-hot targets with the features
    eigenvalues_D: np.ndarray
    eigenvectors_DD: np.ndarray

    def solve(self, penalty: float) -> tuple[np.ndarray, np.ndarray]:
        """(weight (K, D), bias (K,)) of the regression. The bias is not penalised."""
        variance = self.eigenvalues_D.mean() or 1.0  # 0 if all rows are the same
        shrunk_D = self.eigenvalues_D + penalty * variance
        weight_KD = (self.covariance_KD @ self.eigenvectors_DD / shrunk_D) @ self.eigenvectors_DD.T
        return weight_KD, self.shares_K - weight_KD @ self.mean_D


def fit_ridge_head(features_ND: np.ndarray, labels_N: np.ndarray, num_classes: int, seed: int) -> RidgeHead:
    """The head for pooled features of training images.

    The regression estimates for each class the probability of its label, 0 to 1. As logits such scores would give almost
    equal softmax probabilities; they are multiplied by a scale. Penalty and scale are those with the smallest cross-entropy of
    images that the regression has not seen, by cross-validation in FOLDS parts of equal class shares.

    features_ND: float32. labels_N: int64 below num_classes. Memory: num_classes * D values, and D * D for each fold.
    """
    fold_N = _folds(labels_N, seed)
    held_out = [np.flatnonzero(fold_N == fold) for fold in np.unique(fold_N)]
    moments = [_moments(features_ND, labels_N, np.setdiff1d(np.arange(len(labels_N)), rows), num_classes)
               for rows in held_out]  # fmt: skip
    kept = max(1, SCORED_VALUES // num_classes // len(held_out))
    scored = [rows[:kept] for rows in held_out]
    labels = np.concatenate([labels_N[rows] for rows in scored])
    smallest, largest = LOG_TEMPERATURES
    logs = smallest - np.log(max(1, num_classes / CLASSES)), largest
    best = None
    for penalty in reversed(PENALTIES):  # of equal ones the strongest
        scores = [_score(m, features_ND[rows], penalty) for m, rows in zip(moments, scored, strict=True)]
        temperature, cross_entropy = fit_temperature(np.concatenate(scores), labels, logs)
        if best is None or cross_entropy < best[0]:
            best = cross_entropy, penalty, 1 / temperature
    assert best is not None
    _, penalty, scale = best
    weight_KD, bias_K = _moments(features_ND, labels_N, np.arange(len(labels_N)), num_classes).solve(penalty)
    return RidgeHead((scale * weight_KD).astype(np.float32), (scale * bias_K).astype(np.float32), penalty, scale)


def _folds(labels_N: np.ndarray, seed: int) -> np.ndarray:
    """The fold of each row: random, with the same share of each class in every fold."""
    order = np.lexsort((np.random.default_rng(seed).permutation(len(labels_N)), labels_N))
    fold_N = np.empty(len(labels_N), np.int64)
    fold_N[order] = np.arange(len(labels_N)) % FOLDS
    return fold_N


def _moments(features_ND: np.ndarray, labels_N: np.ndarray, rows: np.ndarray, num_classes: int) -> _Moments:
    count, width = len(rows), features_ND.shape[1]
    mean_D = features_ND[rows].mean(0, dtype=np.float64)
    gram_DD, sums_KD = np.zeros((width, width)), np.zeros((num_classes, width))
    for start in range(0, count, CHUNK):
        part = rows[start : start + CHUNK]
        centred = features_ND[part].astype(np.float64) - mean_D
        gram_DD += centred.T @ centred
        np.add.at(sums_KD, labels_N[part], centred)
    shares_K = np.bincount(labels_N[rows], minlength=num_classes) / count
    return _Moments(shares_K, mean_D, sums_KD / count, *np.linalg.eigh(gram_DD / count))


def _score(moments: _Moments, features: np.ndarray, penalty: float) -> np.ndarray:
    """Scores (n, K) less the largest one of each row."""
    weight_KD, bias_K = moments.solve(penalty)
    scores = features @ weight_KD.T.astype(np.float32) + bias_K.astype(np.float32)
    return scores - scores.max(1, keepdims=True)
