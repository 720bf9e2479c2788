"""The forward loop over batches, and exact scores: every sample counts once at any world size.

An evaluation keeps a row of numbers (COLUMNS) for each image on the device until the last batch. For few images it also
keeps the logits.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastft.evaluate.calibration import calibrate
from fastft.evaluate.metrics import balanced_accuracy, cross_fitted_f1, macro_f1, mean_average_precision, predict_sets
from fastft.machine.distributed import World
from fastft.machine.precision import Precision
from fastft.model import ImageClassifier
from fastft.model.classifier import rank_classes
from fastft.run.evaluations import Scores
from fastft.run.predictions import Predictions

if TYPE_CHECKING:
    from fastft.data.loader import Batch  # imports Numba, which prediction does not need

KEPT_IN_TRAINING = 2**22  # logit values per model that an evaluation within a run keeps: 16 MiB
TOP5_CLASSES = 6  # with at most 5 classes every image is a top-5 hit
COLUMNS = 6  # label, prediction, their probabilities, top-5 hit, cross-entropy. float32 holds labels to 2^24 exactly


class EvaluationStopped(Exception):
    """The evaluation ended before its last batch because `stop` returned true."""


@dataclass(frozen=True)
class Evaluated:
    """A model's scores on some images, and the predictions from which they were computed."""

    scores: Scores
    predictions: Predictions = field(repr=False)


def forward(
    models: Sequence[nn.Module],
    batches: Iterable[Any],
    world: World,
    precision: Precision,
    stop: Callable[[], bool] = lambda: False,
    method: str = "__call__",
    flip_average: bool = False,
) -> Iterator[tuple[Any, list[Tensor]]]:
    """Yield each batch with every model's output in eval mode, float32 on the device.

    The models' modes are restored at the end.

    Args:
        batches: their `images` are what the models take, on the models' device.
        stop: called before each batch.
        method: name of the models' method to call, such as "pooled" for embeddings.
        flip_average: average the outputs for the images and their mirror images.

    Raises:
        EvaluationStopped: in every process, if `stop` returned true in one of them.
    """
    training = [model.training for model in models]
    for model in models:
        model.eval()
    stopped = False
    try:
        for batch in batches:
            if stopped := stop():
                break
            with torch.inference_mode(), precision.autocast():
                outputs = [getattr(model, method)(batch.images).float() for model in models]
                if flip_average:
                    mirrored = (getattr(model, method)(batch.images.flip(-1)).float() for model in models)
                    outputs = [(output + other) / 2 for output, other in zip(outputs, mirrored, strict=True)]
            yield batch, outputs
    finally:
        for model, mode in zip(models, training, strict=True):
            model.train(mode)
    if world.any(stopped):
        raise EvaluationStopped


@torch.inference_mode()
def pooled_features(
    model: ImageClassifier,
    batches: "Iterable[Batch]",
    world: World,
    precision: Precision,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the head's input for every image in all processes' batches, and the labels.

    The input is float32 (N, D). Labels are int64 (N,), or sets (N, K).
    """
    rows = []
    for batch, (features_BD,) in forward([model], batches, world, precision, stop, "pooled"):
        rows.append(torch.cat([batch.labels.reshape(len(features_BD), -1).float(), features_BD], dim=1))
    mine = torch.cat(rows) if rows else torch.empty(0, 1, device=world.device)
    table = world.gather_rows(mine).cpu().numpy()
    labels, features_ND = np.split(table, [-model.head.in_features], axis=1)
    return features_ND, labels[:, 0].astype(np.int64) if labels.shape[1] == 1 else labels


@torch.inference_mode()
def evaluate(
    models: Sequence[nn.Module],
    batches: "Iterable[Batch]",
    world: World,
    precision: Precision,
    stop: Callable[[], bool] = lambda: False,
    with_logits: bool = False,
    thresholds: Sequence[float] = (),
) -> list[Evaluated]:
    """Compute scores and predictions for every model over all processes' `batches`, which are read once for all models.

    Nothing waits for the device before the last batch.

    Args:
        stop: called before each batch.
        with_logits: keep the logits, which temperature scaling needs.
        thresholds: for multi-label models. By default they are fitted here.

    Raises:
        EvaluationStopped: in every process, if `stop` returned true in one of them.
    """
    kept: list[list[Tensor]] = [[] for _ in models]
    classes, multi_label = 0, False
    for batch, logits in forward(models, batches, world, precision, stop):
        for rows, logits_BK in zip(kept, logits, strict=True):
            rows.append(_image_rows(logits_BK, batch.labels, with_logits))
            classes, multi_label = logits_BK.shape[1], batch.labels.ndim == 2
    classes = world.max(classes)
    if world.any(multi_label):
        return [_set_scores(rows, classes, world, thresholds) for rows in kept]
    return [_scores(rows, classes, world) for rows in kept]


def _image_rows(logits_BK: Tensor, labels_B: Tensor, with_logits: bool) -> Tensor:
    """Return float32 (B, COLUMNS), or (B, COLUMNS + K) with the logits, on the device.

    For label sets the row holds the sets and the logits, (B, 2 * K).
    """
    if labels_B.ndim == 2:
        return torch.cat([labels_B, logits_BK], dim=1)
    ranked_BJ = rank_classes(logits_BK, 5)
    pair_B2 = torch.stack([labels_B, ranked_BJ[:, 0]], dim=1)
    probabilities_B2 = (logits_BK.gather(1, pair_B2) - logits_BK.logsumexp(1, keepdim=True)).exp()
    hit_B = (ranked_BJ == labels_B[:, None]).any(1)
    loss_B = F.cross_entropy(logits_BK, labels_B, reduction="none")
    columns = [pair_B2, probabilities_B2, hit_B[:, None], loss_B[:, None], *([logits_BK] if with_logits else [])]
    return torch.cat([column.float() for column in columns], dim=1)


def _scores(rows: list[Tensor], classes: int, world: World) -> Evaluated:
    """Compute the scores for all processes' images from the rows in this process."""
    mine = torch.cat(rows) if rows else torch.empty(0, COLUMNS, device=world.device)
    table = world.gather_rows(mine).cpu().numpy()
    labels, predicted = (table[:, k].astype("int64") for k in (0, 1))
    logits_NK = table[:, COLUMNS:] if table.shape[1] > COLUMNS else None
    predictions = Predictions(labels, predicted, table[:, 3], table[:, 2], classes, logits_NK)
    calibration = calibrate(predictions)
    scores = Scores(
        samples=len(table),
        loss=float(table[:, 5].mean(dtype="float64")),
        top1=100 * int(predictions.right_N.sum()) / len(table),
        top5=100 * int(table[:, 4].sum(dtype="int64")) / len(table) if classes >= TOP5_CLASSES else None,
        balanced_accuracy=balanced_accuracy(predictions),
        macro_f1=macro_f1(predictions),
        ece=calibration.plain.ece,
        temperature=calibration.temperature,
        ece_scaled=None if calibration.scaled is None else calibration.scaled.ece,
        foreign_below=calibration.foreign_below,
    )
    return Evaluated(scores, predictions)


def _set_scores(rows: list[Tensor], classes: int, world: World, thresholds: Sequence[float]) -> Evaluated:
    mine = torch.cat(rows) if rows else torch.empty(0, 2 * classes, device=world.device)
    labels_NK, logits_NK = world.gather_rows(mine).cpu().double().split(classes, dim=1)
    p = predict_sets(labels_NK.numpy() > 0.5, logits_NK.nan_to_num().float().numpy(), thresholds)
    fitted = None if thresholds or p.thresholds_K is None else p.thresholds_K.tolist()
    scores = Scores(
        samples=len(labels_NK),
        loss=float(F.binary_cross_entropy_with_logits(logits_NK, labels_NK)),
        ece=calibrate(p).plain.ece,
        map=mean_average_precision(p),
        macro_f1=macro_f1(p) if thresholds else cross_fitted_f1(p),
        thresholds=fitted,
    )
    return Evaluated(scores, p)
