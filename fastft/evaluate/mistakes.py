"""A run's predictions for its validation file, for its report: metrics per class, and the mistakes with their images."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from PIL import Image

from beton_tools.base.console import printable
from beton_tools.base.errors import UserError
from beton_tools.read.beton_set import BetonSet
from beton_tools.read.sample_table import SampleTable, classes_of
from beton_tools.write.images import decode_sample
from fastft.evaluate.calibration import Calibration, calibrate
from fastft.evaluate.evaluation import evaluate_file
from fastft.evaluate.file_report import FileReport, report_file
from fastft.evaluate.predictor import PatchVotes, compute_outputs
from fastft.evaluate.trained import Trained, no_votes
from fastft.evaluate.votes import draw_votes
from fastft.recipe.constants import AUTO
from fastft.run.inputs import open_of_run
from fastft.run.predictions import Predictions, log_sum_exp
from fastft.run.run_directory import Run

EVALUATED_ON_CPU = 3000  # a CPU evaluates this many in a minute or two
LISTED_MISTAKES = 12
THUMBNAIL = 168  # longer side in pixels. Shown at half this size, for high-density screens
THUMBNAIL_QUALITY = 82


@dataclass(frozen=True)
class Mistake:
    """One wrong prediction. `sample` is the index in the validation file. truth_probability: None if multi-label.

    file: name in the validation file's source, or "" if it is not known.
    """

    sample: int
    truth: str
    truth_probability: float | None
    predicted: str
    predicted_probability: float
    image: str = ""  # data URI
    votes: str = ""  # data URI: the image with the patches that vote for the prediction, and for the truth
    file: str = ""


@dataclass(frozen=True)
class Mistakes:
    """Wrong predictions: `wrong` out of `images` validation images."""

    images: int
    wrong: int
    most_confident: list[Mistake]


@dataclass(frozen=True)
class RunPredictions:
    """A run's predictions for its validation images."""

    report: FileReport
    mistakes: Mistakes
    calibration: Calibration
    foreign: list[Mistake] = field(
        default_factory=list
    )  # images that --reject-foreign rejects, the least similar first


def predict_validation(run: Run, insist: bool, weights: str = AUTO) -> tuple[RunPredictions | None, str]:
    """Predict with a run's weights, by default those that it chose.

    Returns the predictions, or None and the reason why there are none. Without `insist`, predictions are made only if
    there is a GPU or if there are few validation images. Raises UserError if `insist` is set and the validation file or
    the checkpoint cannot be read.
    """
    if run.recipe.data.val is None:
        return None, "The run has no validation data."
    try:
        betons = open_of_run(run, "data.val")
        if not insist and len(betons) > EVALUATED_ON_CPU and not torch.cuda.is_available():
            images = f"{len(betons):,} images take long to predict without a GPU"
            return None, f"Left out: {images} (--mistakes=always evaluates them)."
        trained, evaluated = evaluate_file(run.folder, betons, "auto", weights)
    except UserError as error:
        if insist:
            raise
        return None, f"Left out: {error}."
    predictions, files = evaluated.predictions, betons.read_names()
    mistakes, calibration = find_mistakes(predictions, trained.outputs), calibrate(predictions)

    def with_images(listed: list[Mistake]) -> list[Mistake]:
        return [
            replace(m, image=thumbnail(betons, m.sample), file=printable(files[m.sample]) if files else "")
            for m in listed
        ]

    shown = _with_votes(with_images(mistakes.most_confident), betons, trained)
    mistakes = replace(mistakes, most_confident=shown)
    foreign = with_images(find_foreign(predictions, calibration, trained.outputs))
    return RunPredictions(report_file(trained, evaluated), mistakes, calibration, foreign), ""


def find_mistakes(predictions: Predictions, names: Sequence[str]) -> Mistakes:
    """Find the mistakes and list the LISTED_MISTAKES with the most probable wrong class first. names: all outputs'."""
    p = predictions
    if p.thresholds_K is not None:
        return _wrong_labels(p, names)
    wrong = np.flatnonzero(~p.right_N)
    shown = wrong[np.argsort(-p.confidence_N[wrong], kind="stable")][:LISTED_MISTAKES]
    return Mistakes(len(p.labels_N), len(wrong), _listed(p, shown, names))


def find_foreign(p: Predictions, calibration: Calibration, names: Sequence[str]) -> list[Mistake]:
    """List the LISTED_MISTAKES images that are least like the training images, if `--reject-foreign` rejects them."""
    if p.logits_NK is None or calibration.foreign_below is None:
        return []
    sums_N = log_sum_exp(p.logits_NK)
    below = np.flatnonzero(sums_N < calibration.foreign_below)
    return _listed(p, below[np.argsort(sums_N[below], kind="stable")][:LISTED_MISTAKES], names)


def _listed(p: Predictions, shown: np.ndarray, names: Sequence[str]) -> list[Mistake]:
    return [
        Mistake(
            sample=int(k),
            truth=names[p.labels_N[k]],
            truth_probability=float(p.truth_N[k]),
            predicted=names[p.predicted_N[k]],
            predicted_probability=float(p.confidence_N[k]),
        )
        for k in shown
    ]


def _wrong_labels(p: Predictions, names: Sequence[str]) -> Mistakes:
    """Return the images with the most probable wrong label, or with the least probable missing label."""
    odds_NK = np.where(p.right_N, -1, np.where(p.labels_N, 1 - p.confidence_N, p.confidence_N))
    wrong, listed = np.flatnonzero(~p.right_N.all(1)), []
    for i in wrong[np.argsort(-odds_NK[wrong].max(1), kind="stable")][:LISTED_MISTAKES].tolist():
        k = int(odds_NK[i].argmax())
        truth = ", ".join(names[label] for label in classes_of(p.labels_N[i])) or "nothing"
        predicted = f"{'no ' if p.labels_N[i, k] else ''}{names[k]}"
        listed.append(Mistake(i, truth, None, predicted, float(odds_NK[i, k])))
    return Mistakes(len(p.labels_N), len(wrong), listed)


def _with_votes(mistakes: list[Mistake], betons: BetonSet, trained: Trained) -> list[Mistake]:
    """Add maps with the votes for the predicted class against the true one, if the model has votes (`patch_votes`)."""
    if no_votes(trained) or trained.recipe.data.multi_label:
        return mistakes
    images = [Image.fromarray(decode_sample(betons, m.sample)) for m in mistakes]
    exact = replace(trained, recipe=trained.recipe.with_option("train.amp", "fp32"))
    device = next(trained.model.parameters()).device
    shown = []
    for m, (image, _, output) in zip(
        mistakes, compute_outputs(exact, images, device, method="patch_votes"), strict=True
    ):
        votes = PatchVotes(output.numpy(), trained.outputs, trained.recipe)
        assert isinstance(image, Image.Image)
        difference_HW = votes.against(*(trained.outputs.index(name) for name in (m.predicted, m.truth)))
        shown.append(replace(m, votes=_as_uri(draw_votes(image, difference_HW, trained.recipe)[1])))
    return shown


def thumbnail(table: SampleTable, sample: int) -> str:
    """Return a small JPEG of one image as a data URI."""
    return _as_uri(Image.fromarray(decode_sample(table, sample)))


def _as_uri(image: Image.Image) -> str:
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=THUMBNAIL_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
