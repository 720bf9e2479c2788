"""Two runs on the same validation images: which of them is right on more, image by image."""

from collections.abc import Sequence
from dataclasses import dataclass
from zipfile import BadZipFile

import numpy as np

from beton_tools.base.errors import UserError
from beton_tools.read.beton_set import BetonSet
from fastft.recipe.constants import EMA, PROBE, RAW
from fastft.run.chosen_weights import Comparison, count_disagreements
from fastft.run.evaluations import PAIRED, main_score
from fastft.run.prediction_metrics import VALIDATION
from fastft.run.run_directory import Run

FIRST, SECOND = "first", "second"  # names of two runs in their disagreements


@dataclass(frozen=True)
class Judged:
    """What a run predicts for its validation images at its last evaluation.

    kind: the weights, "raw" or "ema". names: of the images in their source. truth: the labels by class name, one text per image.
    labels_N: int64. right: bool (N,), multi-label (N, K).
    """

    kind: str
    epoch: int
    score: str
    names: Sequence[str]
    truth: Sequence[str]
    labels_N: np.ndarray
    right: np.ndarray


def read_judged(run: Run) -> Judged | None:
    """The predictions of a run with the kind of weights that it chose; None without them, or without the validation file.

    They are those of the last epoch, also of a run that chose an earlier one.
    """
    path = run.folder / VALIDATION
    if run.recipe.data.val is None or not run.evaluations or not path.is_file():
        return None
    try:
        betons = BetonSet.open(run.recipe.data.val)
        names = betons.read_names()
        with np.load(path) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, BadZipFile, UserError):
        return None
    wanted = run.weights.get("kind", EMA)
    kinds = [k for k in (RAW if wanted == PROBE else wanted, EMA, RAW) if f"{k}_predicted" in arrays]
    if not kinds or names is None or len(names) != len(arrays.get("labels", ())):
        return None
    labels, predicted = arrays["labels"], arrays[f"{kinds[0]}_predicted"]
    classes = betons.class_names
    if labels.ndim == 2:
        truth = [";".join(classes[k] for k in np.flatnonzero(row)) for row in labels]
    else:
        truth = [classes[k] for k in labels]
    score = main_score(run.evaluations[-1])
    return Judged(kinds[0], int(arrays["epoch"]), score, list(names), truth, labels, predicted == labels)


def compare_judged(first: Judged, second: Judged) -> tuple[Comparison, int] | None:
    """(how far `second` is ahead of `first`, the number of images that both have, with the same labels); None without any.

    Balanced accuracy where it compares the epochs of both runs. Images are matched by name and labels.
    """
    place = {pair: i for i, pair in enumerate(zip(first.names, first.truth, strict=True))}
    pairs = [(place[pair], i) for i, pair in enumerate(zip(second.names, second.truth, strict=True)) if pair in place]
    if not pairs or first.right.ndim != second.right.ndim or first.right.shape[1:] != second.right.shape[1:]:
        return None
    ours, theirs = np.array(pairs).T
    right = {SECOND: second.right[theirs], FIRST: first.right[ours]}
    score = first.score if first.score == second.score else "top1"
    labels_N = first.labels_N[ours] if score == "balanced_accuracy" else None
    counts = count_disagreements(right, labels_N)
    return Comparison.of(counts, SECOND, FIRST, len(pairs), PAIRED[score]), len(pairs)
