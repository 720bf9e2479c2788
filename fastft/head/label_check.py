"""Which training images have doubtful labels, and which classes would gain from more images, by the linear probe."""

import numpy as np
from scipy.special import softmax  # type: ignore[import-untyped]

from fastft.evaluate.linear_probe import LinearProbe
from fastft.evaluate.ridge import score_on_halves, score_out_of_fold
from fastft.recipe.constants import FEW_IMAGES
from fastft.run.training_labels import ClassCurve, Doubt, TrainingLabels

LISTED = 20
FEWEST = 20  # images. With fewer, half of four folds can be empty, and little could be said


def judge_labels(probe: LinearProbe) -> TrainingLabels | None:
    """Classify the training images by regressions that were not fitted to them.

    None for multi-label data, for very few images, or for FEW_IMAGES or more, where this would take minutes.
    """
    data, penalty = probe.data, probe.head.penalty
    if data is None or data.labels_N.ndim == 2 or not FEWEST <= len(data) < FEW_IMAGES:
        return None
    labels_N, num_classes, every_N = data.labels_N, data.num_classes, np.arange(len(data))
    (scores_NK,) = score_out_of_fold(data, [data.features_ND], every_N, penalty)
    probability_NK = softmax(probe.head.scale * scores_NK, axis=1)
    predicted_N, of_label_N = scores_NK.argmax(1), probability_NK[every_N, labels_N]
    right_N = predicted_N == labels_N
    half_N = np.mean([scores.argmax(1) == labels_N for scores in score_on_halves(data, penalty)], axis=0)
    counts_K = np.bincount(labels_N, minlength=num_classes)
    half_K, all_K = (
        100 * np.bincount(labels_N, hits, num_classes) / np.maximum(1, counts_K) for hits in (half_N, right_N)
    )
    doubted = np.argsort(of_label_N, kind="stable")
    listed = doubted[~right_N[doubted]][:LISTED].tolist()
    return TrainingLabels(
        images=len(labels_N), wrong=int((~right_N).sum()), half=100 * float(half_N.mean()), all=100 * float(right_N.mean()),
        doubts=[
            Doubt(
                sample=i, label=int(labels_N[i]), label_probability=float(of_label_N[i]), predicted=int(predicted_N[i]),
                predicted_probability=float(probability_NK[i, predicted_N[i]]),
            ) for i in listed
        ],
        classes=[
            ClassCurve(label=k, images=int(counts_K[k]), half=float(half_K[k]), all=float(all_K[k]))
            for k in np.flatnonzero(counts_K).tolist()
        ],
    )  # fmt: skip
