"""The head of a run that starts from ridge regression on the frozen tower (`model.head_init=probe`).

Fine-tuning from a random head distorts pretrained features while the head is learnt; starting from a linear probe avoids this
(LP-FT, 2202.10054).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F

from beton_tools.base.errors import UserError
from beton_tools.base.progress_bar import progress_lines
from beton_tools.read.sample_table import strata
from fastft.augment.recipe_policy import build_policy
from fastft.data import EvalLoader, Output, Shard
from fastft.data.classes import name_outputs
from fastft.evaluate.scores import forward, pooled_features
from fastft.machine.precision import Precision
from fastft.machine.processes import World
from fastft.model import ImageClassifier
from fastft.model.head_file import Head, tower_checksum, write_head
from fastft.run.chosen_weights import PROBE_HEAD
from fastft.run.prediction_metrics import LOG_TEMPERATURES, fit_temperature
from fastft.run.run_directory import write_choices, write_recipe
from fastft.train.augmentation_choice import HFLIP, Mirrored, choose_augmentation
from fastft.train.checkpointing import init_optimizer_state
from fastft.train.near_copies import warn_of_copies

if TYPE_CHECKING:
    from fastft.train.setup import Setup

MOST_IMAGES = 100_000  # whose features are kept: of 1,024 values they take 400 MB

# of the regression
FOLDS = 5
# weight of the penalty, relative to the mean variance of the features
PENALTIES = tuple(10.0**exponent for exponent in np.arange(-5, 1.01, 0.5))
# up to this many classes the scale has the range of temperatures; scores of more are closer together, and need a larger one
CLASSES = 10
SCORED_VALUES = 2**24  # of held-out scores that are kept at a time: 64 MiB
MOST_KEPT = 2**14  # of more images: features that are kept to choose penalty and scale, 64 MiB of 1,024 values
CHUNK = 8192  # rows that are converted to float64 at a time


def start_from_probe(setup: "Setup", say: Callable[[str], None]) -> None:
    """Fit the head of a new run and evaluate it; its copy in the run directory stays. May replace the recipe.

    Raises EvaluationStopped: in every process, if a stop was requested in one of them.
    """
    s, model, began = setup, setup.step.model, time.monotonic()
    say(f"head: computing the features of {s.loader.num_samples:,} training images")
    baseline, mirrored, features_ND = set_probe_head(s, say)
    inputs: list[torch.Tensor] = []  # of the head, for validation images
    with model.head.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0].float())):
        scores = [s.validation.scores([model], loader)[0] for loader in s.validation.loaders]
    s.recipe, lines = choose_augmentation(s, mirrored)
    for line in _warn_of_copies(s, features_ND, inputs) + lines:
        say(line)
    s.loader.set_policy(build_policy(s.recipe))
    if s.step.ema is not None:
        s.step.ema.module.load_state_dict(model.state_dict())
    init_optimizer_state(s.step.optimizer)
    s.progress.baseline = {**baseline, "seconds": time.monotonic() - began}
    s.progress.add_baseline(scores)
    if s.world.is_main:
        classes = name_outputs(s.loader.class_names, s.recipe.data.num_classes)
        tensors = model.head.weight.detach().cpu(), model.head.bias.detach().cpu()
        source = {"weights": s.recipe.model.weights, "tower": tower_checksum(model)}
        write_head(s.folder / PROBE_HEAD, Head(*tensors, classes, model.pool, source))
        write_recipe(s.folder, s.recipe)
        write_choices(s.folder, s.recipe)


def _warn_of_copies(setup: "Setup", features_ND: np.ndarray | None, inputs: list[torch.Tensor]) -> list[str]:
    """`warn_of_copies` in process 0, for the first validation loader. inputs: of the head, in this process's batches."""
    loader = setup.validation.loader
    if features_ND is None or loader is None:
        return []
    mine = torch.cat(inputs)[: len(loader.share)] if inputs else torch.empty(0, 1)
    val_ND = setup.world.gather_rows(mine).cpu().numpy()
    return warn_of_copies(setup.loader.betons, features_ND, loader.betons, val_ND) if setup.world.is_main else []


def set_probe_head(
    setup: "Setup", say: Callable[[str], None]
) -> tuple[dict[str, Any], Mirrored | None, np.ndarray | None]:
    """Replace the head of the set-up's model by ridge regression on its pooled features of the training images.

    The images are seen as in evaluation. The head is the same in all processes. Returns for the log images, penalty
    and scale of `fit_ridge_head`; and how it recognises mirrored images, if the recipe leaves `augment.hflip` to it. Raises
    EvaluationStopped: in every process, if a stop was requested in one of them.
    """
    s, r, model = setup, setup.recipe, setup.step.model
    output, batch = Output(r.model.image_size, s.world.device, s.precision.dtype), s.micro_batches.size
    tries_mirrored = HFLIP in r.automatic and not r.data.multi_label
    with EvalLoader(
        s.loader.betons, build_policy(r), output, batch_size=batch,
        shard=Shard(s.world.rank, s.world.size), workers=r.data.workers or None,
    ) as loader, progress_lines("head", say, "images, mirrored too" if tries_mirrored else "images") as show:  # fmt: skip
        images, head, mirrored, features_ND, batches = loader.num_samples, None, None, None, count()
        total = images * (1 + tries_mirrored)

        def stop() -> bool:
            show(min(total, next(batches) * batch * s.world.size), total, 0)
            return s.guard.is_stop_requested()

        if images > MOST_IMAGES and not r.data.multi_label:
            head = _fit_in_one_pass(model, loader, s.world, s.precision, r.train.seed, stop)
        else:
            features_ND, labels_N = pooled_features(model, loader, s.world, s.precision, stop)
            mirrored_ND, fit = None, (labels_N, r.data.num_classes, r.train.seed)
            if tries_mirrored:
                flipped = (replace(b, images=b.images.flip(-1)) for b in loader)
                mirrored_ND, _ = pooled_features(model, flipped, s.world, s.precision, stop)
            show(total, total, 0)
            if s.world.is_main:
                head = fit_ridge_head(features_ND, *fit)
                if mirrored_ND is not None:
                    mirrored = count_mirrored(features_ND, mirrored_ND, head.penalty, *fit)
    head, mirrored = s.world.broadcast(None if head is None else (head, mirrored))
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(head.weight_KD))
        model.head.bias.copy_(torch.from_numpy(head.bias_K))
    return {"images": images, "penalty": head.penalty, "scale": head.scale}, mirrored, features_ND


@torch.inference_mode()
def _fit_in_one_pass(
    model: ImageClassifier, loader: EvalLoader, world: World, precision: Precision, seed: int, stop: Callable[[], bool]
) -> "RidgeHead":
    """The head of many images, of which only sums of width x width and classes x width values are kept, in float64.

    Penalty and scale are chosen on some images whose features are kept, by the sums of the others; the head is of all images.
    """
    classes, width = model.head.weight.shape
    kept = min(MOST_KEPT, SCORED_VALUES // classes, loader.num_samples // FOLDS)
    is_kept_N = np.random.default_rng(seed).permutation(loader.num_samples) < max(1, kept)
    sums, rows = _Sums(classes, width, world.device), []
    for batch, (features_BD,) in forward([model], loader, world, precision, stop, "pooled"):
        is_kept_B = torch.from_numpy(is_kept_N[batch.ids]).to(world.device)
        sums.add(features_BD[~is_kept_B], batch.labels[~is_kept_B])
        rows.append(torch.cat([batch.labels[is_kept_B, None].float(), features_BD[is_kept_B]], dim=1))
    table = world.gather_rows(torch.cat(rows) if rows else torch.empty(0, 1)).cpu()
    for summed in sums.parts:
        world.sum(summed)
    features_HD, labels_H = table[:, 1:], table[:, 0].long()
    penalty, scale = _choose([sums.moments()], [(features_HD.numpy(), labels_H.numpy())], classes)
    sums.add(features_HD.to(world.device), labels_H.to(world.device))
    return _scaled(sums.moments(), penalty, scale)


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


class _Sums:
    """Sums over images, float64 on the device: images by class, features by class, and products of features."""

    def __init__(self, classes: int, width: int, device: torch.device) -> None:
        shapes = (1,), (width,), (classes,), (classes, width), (width, width)
        self.parts = [torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes]
        self.count, self.sum_D, self.counts_K, self.sums_KD, self.gram_DD = self.parts

    def add(self, features_BD: torch.Tensor, labels_B: torch.Tensor) -> None:
        """labels_B: int64, or multi-label (B, K)."""
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
                "the tower gives NaN or Inf for training images; check model.weights, or set --train.amp=bf16 or fp32"
            )
        shares, mean, covariance = (tensor.cpu().numpy() for tensor in (shares_K, mean_D, covariance_KD))
        return _Moments(shares, mean, covariance, *np.linalg.eigh(variance_DD.cpu().numpy()))


def fit_ridge_head(features_ND: np.ndarray, labels_N: np.ndarray, num_classes: int, seed: int) -> RidgeHead:
    """The head for pooled features of training images.

    The regression estimates for each class the probability of its label, 0 to 1. As logits such scores would give almost
    equal softmax probabilities; they are multiplied by a scale, multi-label less 1/2. Penalty and scale are those with the
    smallest cross-entropy of images that the regression has not seen, by cross-validation in FOLDS parts of equal class shares.

    features_ND: float32. labels_N: int64 below num_classes, or multi-label (N, num_classes). Memory: num_classes * D values, and
    D * D for each fold.
    """
    fold_N = _folds(labels_N, seed)
    held_out = [np.flatnonzero(fold_N == fold) for fold in np.unique(fold_N)]
    moments = [
        _moments(features_ND, labels_N, np.setdiff1d(np.arange(len(labels_N)), rows), num_classes) for rows in held_out
    ]
    kept = max(1, SCORED_VALUES // num_classes // len(held_out))
    rng = np.random.default_rng(seed)  # files are sorted by class
    chosen = [rows if len(rows) <= kept else np.sort(rng.permutation(rows)[:kept]) for rows in held_out]
    scored = [(features_ND[rows], labels_N[rows]) for rows in chosen]
    penalty, scale = _choose(moments, scored, num_classes)
    whole = _moments(features_ND, labels_N, np.arange(len(labels_N)), num_classes)
    return _scaled(whole, penalty, scale, labels_N.ndim == 2)


def _scaled(moments: _Moments, penalty: float, scale: float, multi_label: bool = False) -> RidgeHead:
    weight_KD, bias_K = moments.solve(penalty)
    bias_K = bias_K - multi_label / 2
    return RidgeHead((scale * weight_KD).astype(np.float32), (scale * bias_K).astype(np.float32), penalty, scale)


def _choose(
    moments: Sequence[_Moments], held_out: Sequence[tuple[np.ndarray, np.ndarray]], num_classes: int
) -> tuple[float, float]:
    """(penalty, scale) with the smallest cross-entropy of the held-out (features, labels) of each of the moments."""
    labels = np.concatenate([labels_N for _, labels_N in held_out])
    smallest, largest = LOG_TEMPERATURES
    logs = smallest - np.log(max(1, num_classes / CLASSES)), largest
    best = None
    for penalty in reversed(PENALTIES):  # of equal ones the strongest
        parts = [_score(m, features_ND, penalty) for m, (features_ND, _) in zip(moments, held_out, strict=True)]
        scores = np.concatenate(parts)
        shifted = scores - (scores.max(1, keepdims=True) if labels.ndim == 1 else 0.5)
        temperature, cross_entropy = fit_temperature(shifted, labels, logs)
        if best is None or cross_entropy < best[0]:
            best = cross_entropy, penalty, 1 / temperature
    assert best is not None
    return best[1:]


def count_mirrored(
    features_ND: np.ndarray, mirrored_ND: np.ndarray, penalty: float, labels_N: np.ndarray, num_classes: int, seed: int
) -> Mirrored:
    """Classify each image by ridge regression on the images of the other folds, as they are."""
    fold_N, right_2N = _folds(labels_N, seed), np.zeros((2, len(labels_N)), bool)
    for fold in np.unique(fold_N):
        moments, rows = _moments(features_ND, labels_N, np.flatnonzero(fold_N != fold), num_classes), fold_N == fold
        for k, features in enumerate((features_ND, mirrored_ND)):
            right_2N[k, rows] = _score(moments, features[rows], penalty).argmax(1) == labels_N[rows]
    plain_N, mirrored_N = right_2N
    only = int((plain_N & ~mirrored_N).sum()), int((mirrored_N & ~plain_N).sum())
    return Mirrored(len(labels_N), int(plain_N.sum()), int(mirrored_N.sum()), *only)


def _folds(labels_N: np.ndarray, seed: int) -> np.ndarray:
    """The fold of each row: random, with the same share of each class in every fold."""
    order = np.lexsort((np.random.default_rng(seed).permutation(len(labels_N)), strata(labels_N)))
    fold_N = np.empty(len(labels_N), np.int64)
    fold_N[order] = np.arange(len(labels_N)) % FOLDS
    return fold_N


def _moments(features_ND: np.ndarray, labels_N: np.ndarray, rows: np.ndarray, num_classes: int) -> _Moments:
    sums = _Sums(num_classes, features_ND.shape[1], torch.device("cpu"))
    for part in np.split(rows, range(CHUNK, len(rows), CHUNK)):
        sums.add(torch.from_numpy(features_ND[part]), torch.from_numpy(labels_N[part]))
    return sums.moments()


def _score(moments: _Moments, features: np.ndarray, penalty: float) -> np.ndarray:
    """Scores (n, K)."""
    weight_KD, bias_K = moments.solve(penalty)
    return features @ weight_KD.T.astype(np.float32) + bias_K.astype(np.float32)
