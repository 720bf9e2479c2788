"""Where a model is wrong: its worst classes, and the mistakes it was surest of, with their images."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from beton_tools.errors import UserError
from beton_tools.format import RAW_MODE, Beton

THUMBNAIL = 168  # pixels of the longer side, shown at half that on a dense screen
THUMBNAIL_QUALITY = 82


@dataclass(frozen=True)
class ClassScore:
    """One class: how many of its images are right, and what the others are mostly taken for."""

    name: str
    top1: float  # percent
    images: int
    confused_with: str
    confused: int


@dataclass(frozen=True)
class Mistake:
    """`sample` is the index in the validation file; shares are softmax probabilities."""

    sample: int
    truth: str
    truth_share: float
    predicted: str
    predicted_share: float
    image: str = ""  # data URI


@dataclass(frozen=True)
class Mistakes:
    images: int
    wrong: int
    classes: list[ClassScore]
    surest: list[Mistake]


def find_mistakes(
    logits_NK: np.ndarray, labels_N: np.ndarray, classes: Sequence[str], worst: int = 20, surest: int = 12
) -> Mistakes:
    """The `worst` classes by top-1 and the `surest` mistakes by probability of the wrong class.

    logits_NK: float (N, K). labels_N: int (N,). Raises UserError where the two do not belong together.
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
        classes=_worst_classes(predicted_N, labels_N, classes)[:worst],
        surest=_surest(logits_NK, labels_N, predicted_N, wrong, classes)[:surest],
    )


def _worst_classes(predicted_N: np.ndarray, labels_N: np.ndarray, classes: Sequence[str]) -> list[ClassScore]:
    scores = []
    for label in np.unique(labels_N):
        guesses = predicted_N[labels_N == label]
        counts = np.bincount(guesses)
        right = int(counts[label]) if label < len(counts) else 0
        if label < len(counts):
            counts[label] = 0
        other = int(counts.argmax())
        confused = int(counts[other])
        scores.append(
            ClassScore(
                name=class_name(classes, label),
                top1=100 * right / len(guesses),
                images=len(guesses),
                confused_with=class_name(classes, other) if confused else "",
                confused=confused,
            )
        )
    return sorted(scores, key=lambda s: (s.top1, -s.images, s.name))


def _surest(
    logits_NK: np.ndarray,
    labels_N: np.ndarray,
    predicted_N: np.ndarray,
    wrong: np.ndarray,
    classes: Sequence[str],
) -> list[Mistake]:
    shares = _softmax(logits_NK[wrong])
    rows = np.arange(len(wrong))
    sure, right = shares[rows, predicted_N[wrong]], shares[rows, labels_N[wrong]]
    return [
        Mistake(
            sample=int(wrong[k]),
            truth=class_name(classes, labels_N[wrong[k]]),
            truth_share=float(right[k]),
            predicted=class_name(classes, predicted_N[wrong[k]]),
            predicted_share=float(sure[k]),
        )
        for k in np.argsort(-sure, kind="stable")
    ]


def _softmax(logits_NK: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits_NK.astype(np.float64) - logits_NK.max(1, keepdims=True, initial=-np.inf))
    return shifted / shifted.sum(1, keepdims=True)


def class_name(classes: Sequence[str], label: int) -> str:
    return classes[label] if label < len(classes) else f"class {label}"


def thumbnail(beton: Beton, sample: int) -> str:
    """A small JPEG of one image of the file, as a data URI."""
    stored = beton.image_bytes(sample)
    if beton.modes[sample] == RAW_MODE:
        shape = int(beton.heights[sample]), int(beton.widths[sample]), 3
        image = Image.fromarray(stored.reshape(shape))
    else:
        image = Image.open(io.BytesIO(stored.tobytes())).convert("RGB")
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=THUMBNAIL_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
