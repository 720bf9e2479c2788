"""`training_labels.json` in a run directory: what the linear probe says about training images that it was not fitted to."""

from pathlib import Path

from beton_tools.base.typed_json import Count, Document, Number
from fastft.run.json_files import read_document, write_document

TRAINING_LABELS = "training_labels.json"


class Doubt(Document):
    """A training image whose label the probe doubts. sample: its index. Probabilities are from 0 to 1."""

    sample: Count
    label: Count
    label_probability: Number
    predicted: Count
    predicted_probability: Number


class ClassCurve(Document):
    """A class's recall in percent, if the probe is fitted to half of the other training images, and to all of them."""

    label: Count
    images: Count
    half: Number
    all: Number


class TrainingLabels(Document):
    """Five-fold predictions for the training images.

    Attributes:
        images: their number.
        wrong: how many the probe assigns to another class.
        doubts: the images whose label is least probable, the least probable first.
        half, all: accuracy in percent, as in `ClassCurve`.
        classes: by label, those that have images.
    """

    images: Count
    wrong: Count
    half: Number
    all: Number
    doubts: list[Doubt]
    classes: list[ClassCurve]


def write_training_labels(folder: Path, found: TrainingLabels | None) -> None:
    """Write the file, or remove an earlier one if nothing was found."""
    if found is None:
        (folder / TRAINING_LABELS).unlink(missing_ok=True)
    else:
        write_document(folder / TRAINING_LABELS, found)


def read_training_labels(folder: Path) -> TrainingLabels | None:
    """Read a run's file. None if the run has no linear probe, or too many images.

    Raises:
        UserError: the file cannot be read.
    """
    return read_document(folder / TRAINING_LABELS, TrainingLabels, "delete it")
