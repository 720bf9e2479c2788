"""The output of `fastft eval --json` for one file: scores, metrics per class, confusions and calibration."""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from beton_tools.base.typed_json import Count, Document, Number
from fastft.evaluate.calibration import reliability
from fastft.evaluate.metrics import ClassMetrics, class_metrics, confusion_counts, largest_confusions
from fastft.evaluate.trained import Trained
from fastft.run.evaluations import TOP1, BestBy, Scores
from fastft.run.predictions import Predictions

CONFUSIONS = 100  # class pairs that are listed
MATRIX_CLASSES = 100  # with more classes the confusion matrix is left out


@dataclass(frozen=True)
class EvaluatedFile:
    """Scores and predictions on one file.

    ranked_classes: among how many classes the predictions are ranked. note: a sentence if the file's labels were taken by
    position.
    """

    path: Path
    scores: Scores
    predictions: Predictions
    ranked_classes: int
    note: str = ""


class NamedClass(ClassMetrics, kw_only=True):
    """One class. confused_with: the class most often predicted for its images by mistake, and how often."""

    name: str
    confused_with: str | None = None
    confused: Count = 0


class Confusion(Document):
    """Images from one class that are predicted as another."""

    truth: str = msgspec.field(name="class")
    predicted: str
    images: Count


class Bins(Document):
    """The reliability diagram: images by confidence, with their mean confidence and their accuracy, both from 0 to 1."""

    images: list[Count]
    confidence: list[Number]
    accuracy: list[Number]


class FileReport(Scores, kw_only=True, omit_defaults=True):
    """A model's scores on one file, and the results per class.

    Attributes:
        weights: describes in words which weights were used.
        ranked_classes: among how many classes the predictions are ranked.
        ece_by_chance: calibration error that a perfectly calibrated model would show with equally many images.
        confusions, confusion_matrix: the most frequent confusions, and the matrix if there are few classes. None for
            multi-label files.
        best_by: the score that the run used to compare epochs and weights.
        standard_error: binomial standard error for top-1, in percentage points.
        logit_adjustment: whether the logits were corrected for the class sizes. None where this was not an option.
        note: sentences if the file's labels were taken by position, or if it has images that the model was trained on.
    """

    checkpoint: str
    weights: str
    data: str
    ranked_classes: Count
    classes: list[NamedClass]
    ece_by_chance: Number
    reliability: Bins
    confusions: list[Confusion] | None = None
    confusion_matrix: list[list[Count]] | None = None
    best_by: BestBy = TOP1
    standard_error: Number | None = None
    logit_adjustment: bool | None = None
    note: str = ""


def report_file(trained: Trained, evaluated: EvaluatedFile) -> FileReport:
    p, names, scores = evaluated.predictions, trained.outputs, evaluated.scores
    bins, several = reliability(p.confidence_N, p.outcomes_N), p.thresholds_K is not None
    confusions = [] if several else largest_confusions(p)
    mostly = {label: (names[predicted], images) for label, predicted, images in reversed(confusions)}
    listed = [
        Confusion(truth=names[label], predicted=names[wrong], images=n) for label, wrong, n in confusions[:CONFUSIONS]
    ]
    has_matrix = not several and p.num_classes <= MATRIX_CLASSES
    return FileReport(
        checkpoint=str(trained.path),
        weights=trained.weights,
        data=str(evaluated.path),
        ranked_classes=evaluated.ranked_classes,
        classes=[_named(names[c.label], c, *mostly.get(c.label, (None, 0))) for c in class_metrics(p)],
        ece_by_chance=bins.ece_by_chance,
        reliability=Bins(**{name: values.tolist() for name, values in vars(bins).items()}),
        confusions=None if several else listed,
        confusion_matrix=confusion_counts(p).tolist() if has_matrix else None,
        best_by=trained.main_score,
        standard_error=None if scores.top1 is None else scores.top1_error,
        note=evaluated.note,
        **msgspec.structs.asdict(scores),
    )


def _named(name: str, metrics: ClassMetrics, confused_with: str | None = None, confused: int = 0) -> NamedClass:
    return NamedClass(name=name, confused_with=confused_with, confused=confused, **msgspec.structs.asdict(metrics))
