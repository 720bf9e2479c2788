"""Where a model is wrong, from its logits: the most confident mistakes, with their images."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from beton_tools.base.errors import UserError
from beton_tools.base.image_formats import open_image
from beton_tools.read.format import RAW_MODE
from beton_tools.read.sample_table import SampleTable

THUMBNAIL = 168  # pixels of the longer side, shown at half that size for high-density screens
THUMBNAIL_QUALITY = 82


@dataclass(frozen=True)
class Mistake:
    """One wrong prediction. `sample` is the index in the validation file; probabilities are of the softmax.

    file: name in the source of the validation file; "" if it is not known.
    """

    sample: int
    truth: str
    truth_probability: float
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


def find_mistakes(
    logits_NK: np.ndarray,
    labels_N: np.ndarray,
    classes: Sequence[str],
    most_confident: int = 12,
) -> Mistakes:
    """The `most_confident` mistakes by the probability of the wrong class.

    logits_NK: float (N, K). labels_N: int (N,).

    Raises:
        UserError: the shapes differ, or a label is not in 0..K-1.
    """
    if (
        logits_NK.ndim != 2
        or labels_N.shape != (len(logits_NK),)
        or not 0 <= labels_N.max(initial=0) < logits_NK.shape[1]
    ):
        raise UserError(
            f"logits {logits_NK.shape} and labels {labels_N.shape} do not fit; take both from one file"
        )
    predicted_N = logits_NK.argmax(1)
    wrong = np.flatnonzero(predicted_N != labels_N)
    return Mistakes(
        images=len(labels_N),
        wrong=len(wrong),
        most_confident=_by_confidence(logits_NK, labels_N, predicted_N, wrong, classes)[:most_confident],
    )


def _by_confidence(
    logits_NK: np.ndarray,
    labels_N: np.ndarray,
    predicted_N: np.ndarray,
    wrong: np.ndarray,
    classes: Sequence[str],
) -> list[Mistake]:
    """The mistakes at the indices `wrong`, the highest probability of the wrong class first."""
    probabilities = _softmax(logits_NK[wrong])
    rows = np.arange(len(wrong))
    of_predicted, of_truth = probabilities[rows, predicted_N[wrong]], probabilities[rows, labels_N[wrong]]
    return [
        Mistake(
            sample=int(wrong[k]),
            truth=class_name(classes, labels_N[wrong[k]]),
            truth_probability=float(of_truth[k]),
            predicted=class_name(classes, predicted_N[wrong[k]]),
            predicted_probability=float(of_predicted[k]),
        )
        for k in np.argsort(-of_predicted, kind="stable")
    ]


def _softmax(logits_NK: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits_NK.astype(np.float64) - logits_NK.max(1, keepdims=True, initial=-np.inf))
    return shifted / shifted.sum(1, keepdims=True)


def class_name(classes: Sequence[str], label: int) -> str:
    """The name of a class, or "class k" where `classes` has none for it."""
    return classes[label] if label < len(classes) else f"class {label}"


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
