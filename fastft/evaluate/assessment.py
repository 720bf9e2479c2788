"""A run's weights on its validation file, for its report: metrics per class, and the mistakes with their images."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from beton_tools.base.console import printable
from beton_tools.base.errors import UserError
from beton_tools.base.image_formats import open_image
from beton_tools.read.beton_set import BetonSet
from beton_tools.read.format import RAW_MODE
from beton_tools.read.manifest import Manifest
from beton_tools.read.sample_table import SampleTable, classes_of
from fastft.evaluate.evaluation import MATRIX_CLASSES, predict_file
from fastft.recipe.constants import AUTO
from fastft.run.prediction_metrics import (
    Predictions,
    balanced_accuracy,
    calibrate,
    class_metrics,
    confusion_counts,
    largest_confusions,
    macro_f1,
    mean_average_precision,
)
from fastft.run.run_directory import Run

FEW_IMAGES = 3000  # a CPU evaluates as many in a minute or two
LISTED_CLASSES = 200  # those with the lowest F1
LISTED_MISTAKES = 12
THUMBNAIL = 168  # pixels of the longer side, shown at half that size for high-density screens
THUMBNAIL_QUALITY = 82


@dataclass(frozen=True)
class Mistake:
    """One wrong prediction. `sample` is the index in the validation file; truth_probability: None of several labels.

    file: name in the source of the validation file; "" if it is not known.
    """

    sample: int
    truth: str
    truth_probability: float | None
    predicted: str
    predicted_probability: float
    image: str = ""  # data URI
    file: str = ""


@dataclass(frozen=True)
class Mistakes:
    """Wrong predictions: `wrong` of `images` validation images."""

    images: int
    wrong: int
    most_confident: list[Mistake]


@dataclass(frozen=True)
class Assessment:
    """weights: which ones it is of, in words. classes: see `report_classes`."""

    weights: str
    mistakes: Mistakes
    classes: dict[str, Any]


def assess_run(run: Run, insist: bool, weights: str = AUTO) -> tuple[Assessment | None, str]:
    """The assessment of a run's weights, of those that it chose by default, or None and the reason why there is none.

    Without `insist`, only if there is a GPU or there are few validation images. Raises UserError: `insist`, and the validation
    file or the checkpoint cannot be read.
    """
    if run.recipe.data.val is None:
        return None, "The run has no validation data."
    try:
        betons = BetonSet.open(run.recipe.data.val)
        if not insist and len(betons) > FEW_IMAGES and not torch.cuda.is_available():
            images = f"{len(betons):,} images take long without a GPU"
            return None, f"Left out: {images} (--mistakes=always evaluates them)."
        trained, predictions = predict_file(run.folder, Path(run.recipe.data.val), "auto", weights)
    except UserError as error:
        if insist:
            raise
        return None, f"Left out: {error}."
    manifest = Manifest.of_beton(betons.files[0].path)
    names = (manifest and manifest.class_names) or trained.classes
    mistakes = find_mistakes(predictions, names)
    files = betons.read_names()
    shown = [
        replace(m, image=thumbnail(betons, m.sample), file=printable(files[m.sample]) if files else "")
        for m in mistakes.most_confident
    ]
    mistakes = replace(mistakes, most_confident=shown)
    return Assessment(trained.weights, mistakes, report_classes(predictions, names)), ""


def find_mistakes(predictions: Predictions, names: Sequence[str]) -> Mistakes:
    """The mistakes, the LISTED_MISTAKES with the highest probability of the wrong class first. names: as `class_name`."""
    p = predictions
    if p.thresholds_K is not None:
        return _wrong_labels(p, names)
    wrong = np.flatnonzero(~p.right_N)
    shown = wrong[np.argsort(-p.confidence_N[wrong], kind="stable")][:LISTED_MISTAKES]
    listed = [
        Mistake(
            sample=int(k),
            truth=class_name(names, p.labels_N[k]),
            truth_probability=float(p.truth_N[k]),
            predicted=class_name(names, p.predicted_N[k]),
            predicted_probability=float(p.confidence_N[k]),
        )
        for k in shown
    ]
    return Mistakes(len(p.labels_N), len(wrong), listed)


def _wrong_labels(p: Predictions, names: Sequence[str]) -> Mistakes:
    """The images with the most probable wrong label, or the least probable missing one."""
    odds_NK = np.where(p.right_N, -1, np.where(p.labels_N, 1 - p.confidence_N, p.confidence_N))
    wrong, listed = np.flatnonzero(~p.right_N.all(1)), []
    for i in wrong[np.argsort(-odds_NK[wrong].max(1), kind="stable")][:LISTED_MISTAKES].tolist():
        k = int(odds_NK[i].argmax())
        truth = ", ".join(class_name(names, label) for label in classes_of(p.labels_N[i])) or "nothing"
        predicted = f"{'no ' if p.labels_N[i, k] else ''}{class_name(names, k)}"
        listed.append(Mistake(i, truth, None, predicted, float(odds_NK[i, k])))
    return Mistakes(len(p.labels_N), len(wrong), listed)


def report_classes(predictions: Predictions, names: Sequence[str]) -> dict[str, Any]:
    """The metrics of the classes that a report shows. names: as `class_name`.

    rows: (name, ClassMetrics, class that most of its other images are predicted as, how many) of those that have images, at most
    LISTED_CLASSES, lowest F1 first; `classes` counts all. matrix_KK: as `confusion_counts`, of at most MATRIX_CLASSES.
    """
    every = [class_name(names, label) for label in range(predictions.num_classes)]
    several = predictions.thresholds_K is not None
    confusions = [] if several else largest_confusions(predictions, len(predictions.labels_N))
    most_confused = {c.label: (every[c.predicted], c.images) for c in reversed(confusions)}
    metrics = [found for found in class_metrics(predictions) if found.images]
    rows = [(every[found.label], found, *most_confused.get(found.label, ("", 0))) for found in metrics]
    rows.sort(key=lambda row: (row[1].f1 or 0.0, row[0]))
    with_matrix = not several and predictions.num_classes <= MATRIX_CLASSES
    return {
        "names": every,
        "rows": rows[:LISTED_CLASSES],
        "classes": len(rows),
        "balanced_accuracy": None if several else balanced_accuracy(predictions),
        "macro_f1": macro_f1(predictions),
        "matrix_KK": confusion_counts(predictions) if with_matrix else None,
        "calibration": calibrate(predictions),
        "map": mean_average_precision(predictions) if several else None,
    }


def class_name(names: Sequence[str], label: int) -> str:
    """The name of a class by its label, or "class k" where there is none for it."""
    return names[label] if label < len(names) else f"class {label}"


def thumbnail(table: SampleTable, sample: int) -> str:
    """A small JPEG of one image, as a data URI."""
    stored = table.image_bytes(sample)
    if table.modes[sample] == RAW_MODE:
        shape = int(table.heights[sample]), int(table.widths[sample]), 3
        image = Image.fromarray(stored.reshape(shape))
    else:
        image = open_image(stored.tobytes()).convert("RGB")
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=THUMBNAIL_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
